"""The shape that all our networks share: an encoder, decoder steps from coarse to fine, a head; it can be continued at
any step.
"""

from __future__ import annotations

from torch import Tensor

from medkd.core.errors import RunError
from medkd.core.features import Stage, Tap
from medkd.core.run import NetworkSpec
from medkd.networks.base import SegmentationNetwork


class EncoderDecoder(SegmentationNetwork):
    """``forward`` = :meth:`encode`, :attr:`steps` times :meth:`step`, then :meth:`head`.

    A subclass implements these three and sets :attr:`steps` and :attr:`resume`.

    Attributes:
        steps: number of decoder steps.
        resume: tap name → the decoder step that takes the tap's feature map as its input (:attr:`steps` for the head),
            for the taps from which :meth:`forward_from` can go on.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        self.steps = 0
        self.resume: dict[str, int] = {}
        self._features: list[Tensor] | None = None

    def encode(self, x: Tensor) -> list[Tensor]:
        """Feature maps of ``x`` ``(B, C, *spatial)`` that the decoder needs; the last one is where the decoder
        starts.
        """
        raise NotImplementedError

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Decoder step ``index``, 0 the coarsest: from the result ``x`` of the step before and the encoder's
        ``features``.
        """
        raise NotImplementedError

    def head(self, index: int, x: Tensor) -> Tensor:
        """Logits from the result ``x`` of decoder step ``index``; the last step's have the input's resolution."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits ``(B, K, *spatial)``; in training mode with deep supervision a list of them, finest first."""
        self._features = None
        features = self.encode(x)
        if self.remember:
            self._features = features
        if not (self.training and self.deep_supervision):
            return self._finish(0, features[-1], features)
        x, logits = features[-1], []
        for index in range(self.steps):
            x = self.step(index, x, features)
            logits.append(self.head(index, x))
        return logits[::-1]

    def forward_from(self, tap: str, feature: Tensor) -> Tensor:
        """Run the rest of the decoder from a tap, with the skip features of the last ordinary forward pass.

        Raises:
            RunError: the tap is not one to continue from, or no forward pass was remembered.
        """
        if tap not in self.resume:
            raise RunError(f"Network '{self.spec.name}' continues from {', '.join(self.resume)}, not from '{tap}'.")
        if self._features is None:
            raise RunError(
                f"Network '{self.spec.name}' remembers no forward pass; set its attribute 'remember' and run it first."
            )
        return self._finish(self.resume[tap], feature, self._features)

    def tap(
        self, name: str, channels: int, stride: int, module: str, *, correction: bool = False, raw: bool = False
    ) -> Tap:
        """A tap of the same stride along every axis; ``enc…``, ``bottleneck`` and ``dec…`` say where it lies."""
        stage: Stage = "encoder" if name.startswith("enc") else "decoder" if name.startswith("dec") else "bottleneck"
        return Tap(
            name=name,
            channels=channels,
            stride=(stride,) * self.rank,
            module=module,
            stage=stage,
            correction=correction,
            raw=raw,
        )

    def _finish(self, start: int, x: Tensor, features: list[Tensor]) -> Tensor:
        for index in range(start, self.steps):
            x = self.step(index, x, features)
        return self.head(self.steps - 1, x)
