"""U-Net with a ResNet as encoder: ``unet_r18`` and ``unet_r50``."""

from __future__ import annotations

from torch import Tensor

from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder, numbered

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
        if self.rank == 2:
            self.encoder_path, self.encoder_name = "net.encoder", backbone
        encoder = [self.tap("enc0", widths[0], 2, "net.encoder.act")]
        for layer in range(1, 5):
            name = f"enc{layer}" if layer < 4 else "bottleneck"
            blocks = len(getattr(self.net.encoder, f"layer{layer}"))
            path = f"net.encoder.layer{layer}.{blocks - 1}"
            encoder.append(self.tap(name, widths[layer], 2 ** (layer + 1), path, correction=True))
        bottleneck = encoder.pop()
        steps = numbered("net.decoder.blocks", self.steps)
        decoder = self.decoder_taps(DECODER_WIDTHS, steps)
        self.set_taps(encoder, bottleneck, decoder)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Outputs of the stem and of the four layers, strides 2 to 32."""
        return self.net.encoder(x)

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Double the resolution, join the skip (the last step has none), two convolutions."""
        skip = self.skip(index, features) if index < self.steps - 1 else None
        return self.net.decoder.blocks[index](x, skip)

    def head(self, index: int, x: Tensor) -> Tensor:
        """Convolution to logits."""
        return self.net.segmentation_head(x)


for _depth in ENCODER_WIDTHS:
    NETWORKS.register(f"unet_r{_depth}")(NetworkEntry(build=ResNetUNet, citation=ResNetUNet.citation, divisor=32))
