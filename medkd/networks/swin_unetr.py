"""Swin UNETR: a shifted-window transformer as encoder of a convolutional decoder."""

from __future__ import annotations

from torch import Tensor

from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder

WIDTH = 48
ENCODERS = ("encoder1", "encoder2", "encoder3", "encoder4")
DECODERS = ("decoder5", "decoder4", "decoder3", "decoder2", "decoder1")


class SwinUNETRNetwork(EncoderDecoder):
    """MONAI's ``SwinUNETR`` with feature size 48, total stride 32.

    Hatamizadeh, Nath, Tang, Yang, Roth, Xu: Swin UNETR: Swin transformers for semantic segmentation of brain tumors in
    MRI images. BrainLes 2021, arXiv 2201.01266.
    """

    citation = "Hatamizadeh et al., BrainLes 2021, arXiv 2201.01266"

    def __init__(self, spec: NetworkSpec) -> None:
        from monai.networks.nets import SwinUNETR

        super().__init__(spec)
        self.net = SwinUNETR(spec.in_channels, spec.num_outputs, feature_size=WIDTH, spatial_dims=self.rank)
        self.head_path = "net.out.conv.conv"
        self.steps = len(DECODERS)
        # stage 1 sees the image, the others the transformer's stages; all but the first keep their width
        widths = (WIDTH, WIDTH, 2 * WIDTH, 4 * WIDTH)
        encoder = []
        for level, width in enumerate(widths):
            module = f"net.{ENCODERS[level]}"
            encoder.append(self.tap(f"enc{level}", width, 2**level, module, correction=level > 0))
        bottleneck = self.tap("bottleneck", 16 * WIDTH, 32, "net.encoder10", correction=True)
        narrowing = (8 * WIDTH, 4 * WIDTH, 2 * WIDTH, WIDTH, WIDTH)
        steps = [f"net.{name}" for name in DECODERS]
        self.set_taps(encoder, bottleneck, self.decoder_taps(narrowing, steps))

    def encode(self, x: Tensor) -> list[Tensor]:
        """Skip features of strides 1, 2, 4, 8 and 16, and the bottleneck of stride 32."""
        hidden = self.net.swinViT(x, self.net.normalize)
        skips = [
            self.net.encoder1(x),
            self.net.encoder2(hidden[0]),
            self.net.encoder3(hidden[1]),
            self.net.encoder4(hidden[2]),
        ]
        return [*skips, hidden[3], self.net.encoder10(hidden[4])]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Transposed convolution, skip, residual block."""
        decoder = getattr(self.net, DECODERS[index])
        return decoder(x, self.skip(index, features))

    def head(self, index: int, x: Tensor) -> Tensor:
        """1 × 1 convolution."""
        return self.net.out(x)


NETWORKS.register("swin_unetr")(NetworkEntry(build=SwinUNETRNetwork, citation=SwinUNETRNetwork.citation, divisor=32))
