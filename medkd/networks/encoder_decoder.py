"""The shape that all our networks share: an encoder, decoder steps from coarse to fine, a head; it can be continued at
any step.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        x = features[-1]
        logits = []
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
        stage: Stage = "bottleneck"
        if name.startswith("enc"):
            stage = "encoder"
        elif name.startswith("dec"):
            stage = "decoder"
        return Tap(
            name=name,
            channels=channels,
            stride=(stride,) * self.rank,
            module=module,
            stage=stage,
            correction=correction,
            raw=raw,
        )

    def encoder_taps(
        self, widths: Sequence[int], modules: Sequence[str], *, stride: int = 1, correction: bool = False
    ) -> list[Tap]:
        """Taps ``enc0``, ``enc1``, … of these widths at these modules.

        Args:
            widths: channels per tap.
            modules: paths, one per tap.
            stride: of the first tap; every further one has twice the stride of the one before.
            correction: whether a module adds its input to a residual branch.
        """
        taps = []
        for level, module in enumerate(modules):
            width = widths[level]
            taps.append(self.tap(f"enc{level}", width, stride, module, correction=correction))
            stride *= 2
        return taps

    def decoder_taps(
        self, widths: Sequence[int], modules: Sequence[str], *, finest: int = 0, correction: bool = False
    ) -> list[Tap]:
        """Taps ``dec…`` of these widths at these modules, from coarse to fine; ``dec2`` has stride 4.

        Args:
            widths: channels per tap.
            modules: paths, one per tap.
            finest: number of the last tap.
            correction: whether a module adds its input to a residual branch.
        """
        taps = []
        level = finest + len(modules)
        for width, module in zip(widths, modules, strict=True):
            level -= 1
            taps.append(self.tap(f"dec{level}", width, 2**level, module, correction=correction))
        return taps

    def set_taps(self, encoder: Sequence[Tap], bottleneck: Tap, decoder: Sequence[Tap]) -> None:
        """Set :attr:`taps`, and :attr:`resume` for a decoder whose taps are the results of its steps."""
        self.taps = (*encoder, bottleneck, *decoder)
        self.resume = {bottleneck.name: 0}
        for index, tap in enumerate(decoder):
            self.resume[tap.name] = index + 1

    @staticmethod
    def skip(index: int, features: list[Tensor]) -> Tensor:
        """The encoder's feature map that decoder step ``index`` joins: the coarsest but one first."""
        return features[-(index + 2)]

    def _finish(self, start: int, x: Tensor, features: list[Tensor]) -> Tensor:
        for index in range(start, self.steps):
            x = self.step(index, x, features)
        return self.head(self.steps - 1, x)


def numbered(path: str, count: int, ending: str = "") -> list[str]:
    """Paths of the first modules of a list.

    >>> numbered("net.up_layers", 2, ".0")
    ['net.up_layers.0.0', 'net.up_layers.1.0']
    """
    return [f"{path}.{index}{ending}" for index in range(count)]
