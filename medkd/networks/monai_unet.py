"""What the two U-Nets built on MONAI's ``UNet`` share: its recursion unrolled into stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medkd.core.features import Tap
from medkd.core.run import NetworkSpec
from medkd.networks.encoder_decoder import EncoderDecoder
from medkd.networks.initialization import kaiming_fan_out


class MonaiUNet(EncoderDecoder):
    """MONAI's ``UNet`` with stride 2 on entering each of three stages and a bottleneck of stride 1.

    The first operation already halves the resolution, and the last decoder step yields the logits: there is no
    ``dec0``. ``net`` nests stages as ``Sequential(down, SkipConnection(inner stage or bottleneck), up)``.
    """

    def __init__(self, spec: NetworkSpec, widths: Sequence[int], residual_units: int) -> None:
        from monai.networks.nets import UNet

        super().__init__(spec)
        self.steps = len(widths) - 1
        self.net = UNet(
            self.rank, spec.in_channels, spec.num_outputs, widths, (2,) * self.steps, num_res_units=residual_units
        )
        self.net.apply(kaiming_fan_out)
        self.resume = {"bottleneck": 0}
        for level in self.inner_levels():
            self.resume[f"dec{level}"] = self.steps - level

    def inner_levels(self) -> range:
        """Levels of the decoder stages before the one that yields the logits, from coarse to fine."""
        return range(self.steps - 1, 0, -1)

    def down_taps(self, widths: Sequence[int]) -> list[Tap]:
        """Taps on the down paths and on the bottleneck."""
        downs = [f"{self.stage_path(level)}.0" for level in range(self.steps)]
        deepest = self.stage_path(self.steps)
        bottleneck = self.tap("bottleneck", widths[-1], 2**self.steps, deepest)
        return [*self.encoder_taps(widths, downs, stride=2), bottleneck]

    def stage_path(self, level: int) -> str:
        """Dotted path of the stage that is entered after ``level`` others; ``level == steps`` is the bottleneck."""
        return "net.model" + ".1.submodule" * level

    def encode(self, x: Tensor) -> list[Tensor]:
        """Outputs of the down paths, finest first, and of the bottleneck."""
        features = []
        for level in range(self.steps):
            x = self._stage(level)[0](x)
            features.append(x)
        return [*features, self._stage(self.steps)(x)]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """The up path on the skip feature joined with ``x``."""
        level = self.steps - 1 - index
        return self._stage(level)[2](torch.cat((features[level], x), 1))

    def head(self, index: int, x: Tensor) -> Tensor:
        """Nothing more: the last step's result is the logits."""
        return x

    def _stage(self, level: int) -> nn.Sequential:
        return self.get_submodule(self.stage_path(level))  # type: ignore[return-value]
