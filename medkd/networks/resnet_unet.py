"""U-Net with a ResNet as encoder: ``unet_r18`` and ``unet_r50``."""

from __future__ import annotations

from torch import Tensor

from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder

ENCODER_WIDTHS = {18: (64, 64, 128, 256, 512), 50: (64, 256, 512, 1024, 2048)}
DECODER_WIDTHS = (256, 128, 64, 32, 16)


class ResNetUNet(EncoderDecoder):
    """MONAI's ``FlexibleUNet`` on ResNet-18 or ResNet-50 without pretrained weights, total stride 32.

    Ronneberger, Fischer, Brox: U-Net: convolutional networks for biomedical image segmentation. MICCAI 2015, arXiv
    1505.04597; He,
    Zhang, Ren, Sun: Deep residual learning for image recognition. CVPR 2016, arXiv 1512.03385.
    """

    citation = "Ronneberger et al., MICCAI 2015, arXiv 1505.04597; He et al., CVPR 2016, arXiv 1512.03385"

    def __init__(self, spec: NetworkSpec) -> None:
        from monai.networks.nets import FlexibleUNet

        super().__init__(spec)
        depth = int(spec.name.rsplit("_r", 1)[1])
        widths = ENCODER_WIDTHS[depth]
        self.steps = len(DECODER_WIDTHS)
        backbone = f"resnet{depth}"
        self.net = FlexibleUNet(
            spec.in_channels, spec.num_outputs, backbone, decoder_channels=DECODER_WIDTHS, spatial_dims=self.rank
        )
        layers = (self.net.encoder.layer1, self.net.encoder.layer2, self.net.encoder.layer3, self.net.encoder.layer4)
        paths = [f"net.encoder.layer{i + 1}.{len(layer) - 1}" for i, layer in enumerate(layers)]
        encoder = [self.tap(f"enc{i}", widths[i], 2 ** (i + 1), paths[i - 1], correction=True) for i in range(1, 4)]
        bottleneck = self.tap("bottleneck", widths[-1], 32, paths[-1], correction=True)
        decoder = [
            self.tap(f"dec{4 - i}", width, 2 ** (4 - i), f"net.decoder.blocks.{i}")
            for i, width in enumerate(DECODER_WIDTHS)
        ]
        self.taps = (self.tap("enc0", widths[0], 2, "net.encoder.act"), *encoder, bottleneck, *decoder)
        self.resume = {tap.name: index for index, tap in enumerate((bottleneck, *decoder))}

    def encode(self, x: Tensor) -> list[Tensor]:
        """Outputs of the stem and of the four layers, strides 2 to 32."""
        return self.net.encoder(x)

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Double the resolution, join the skip (the last step has none), two convolutions."""
        return self.net.decoder.blocks[index](x, features[-(index + 2)] if index < self.steps - 1 else None)

    def head(self, index: int, x: Tensor) -> Tensor:
        """Convolution to logits."""
        return self.net.segmentation_head(x)


for _depth in ENCODER_WIDTHS:
    NETWORKS.register(f"unet_r{_depth}")(NetworkEntry(ResNetUNet, ResNetUNet.citation, divisor=32))
