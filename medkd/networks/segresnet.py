"""SegResNet: residual blocks, additive skips, trilinear up-sampling (4.70 M parameters in 3D)."""

from __future__ import annotations

from torch import Tensor

from medkd.core.features import Tap
from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder
from medkd.networks.initialization import kaiming_fan_out

WIDTH = 16
BLOCKS = (1, 2, 2, 4)


class SegResNetwork(EncoderDecoder):
    """MONAI's ``SegResNet`` without the autoencoder branch, 16 channels at full resolution, blocks 1, 2, 2, 4.

    Myronenko: 3D MRI brain tumor segmentation using autoencoder regularization. BrainLes 2018, arXiv 1810.11654. Its
    block adds the identity in place to the output of its second convolution, so the residual branch must be taken as
    output − input.
    """

    citation = "Myronenko, BrainLes 2018, arXiv 1810.11654"

    def __init__(self, spec: NetworkSpec) -> None:
        from monai.networks.nets import SegResNet

        super().__init__(spec)
        self.steps = len(BLOCKS) - 1
        self.net = SegResNet(
            self.rank, WIDTH, spec.in_channels, spec.num_outputs, blocks_down=BLOCKS, blocks_up=(1,) * self.steps
        )
        self.net.apply(kaiming_fan_out)
        encoder = [self._level(f"enc{i}", i, f"net.down_layers.{i}.{BLOCKS[i]}") for i in range(self.steps)]
        bottleneck = self._level("bottleneck", self.steps, f"net.down_layers.{self.steps}.{BLOCKS[-1]}")
        decoder = [
            self._level(f"dec{i}", i, f"net.up_layers.{self.steps - 1 - i}.0") for i in range(self.steps - 1, -1, -1)
        ]
        self.taps = (*encoder, bottleneck, *decoder)
        self.resume = {tap.name: index for index, tap in enumerate((bottleneck, *decoder))}

    def _level(self, name: str, level: int, module: str) -> Tap:
        return self.tap(name, WIDTH * 2**level, 2**level, module, correction=True)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Outputs of all encoder stages, finest first."""
        return self.net.encode(x)[1]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Halve the channels, double the resolution, add the skip, one residual block."""
        return self.net.up_layers[index](self.net.up_samples[index](x) + features[-(index + 2)])

    def head(self, index: int, x: Tensor) -> Tensor:
        """Group norm, ReLU, 1 × 1 convolution."""
        return self.net.conv_final(x)


NETWORKS.register("segresnet")(NetworkEntry(SegResNetwork, SegResNetwork.citation, divisor=8))
