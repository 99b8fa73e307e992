"""SegResNet: residual blocks, additive skips, trilinear up-sampling (4.70 M parameters in 3D)."""

from __future__ import annotations

from torch import Tensor

from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder, numbered
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
            self.rank,
            WIDTH,
            spec.in_channels,
            spec.num_outputs,
            blocks_down=BLOCKS,
            blocks_up=(1,) * self.steps,
        )
        self.net.apply(kaiming_fan_out)
        self.head_path = "net.conv_final.2.conv"
        widths = [WIDTH * 2**level for level in range(self.steps)]
        *downs, deepest = (f"net.down_layers.{level}.{blocks}" for level, blocks in enumerate(BLOCKS))
        ups = numbered("net.up_layers", self.steps, ".0")
        self.set_taps(
            self.encoder_taps(widths, downs, correction=True),
            self.tap("bottleneck", WIDTH * 2**self.steps, 2**self.steps, deepest, correction=True),
            self.decoder_taps(widths[::-1], ups, correction=True),
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        """Outputs of all encoder stages, finest first."""
        return self.net.encode(x)[1]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Halve the channels, double the resolution, add the skip, one residual block."""
        finer = self.net.up_samples[index](x)
        return self.net.up_layers[index](finer + self.skip(index, features))

    def head(self, index: int, x: Tensor) -> Tensor:
        """Group norm, ReLU, 1 × 1 convolution."""
        return self.net.conv_final(x)


NETWORKS.register("segresnet")(NetworkEntry(build=SegResNetwork, citation=SegResNetwork.citation, divisor=8))
