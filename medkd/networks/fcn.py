"""Fully convolutional network on a dilated ResNet, 2D: ``fcn_r18`` and ``fcn_r50``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from medkd.core.errors import RunError
from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder
from medkd.networks.initialization import kaiming_fan_out

WIDTHS = {18: (64, 128, 256, 512), 50: (256, 512, 1024, 2048)}
STRIDES = (4, 8, 8, 8)


def timm_model(network: str, name: str, **options: Any) -> Any:
    """A model of timm without pretrained weights and without its classifier.

    Raises:
        RunError: timm is not installed or does not fit the installed torch.
    """
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise RunError(
            f"Network '{network}' needs timm and a torchvision that fits torch ({error}); install medkd[detection], or "
            "choose another one."
        ) from error
    return timm.create_model(name, pretrained=False, num_classes=0, global_pool="", **options)


class Fcn(EncoderDecoder):
    """ResNet with output stride 8 (timm), a convolution to a quarter of its channels, a classifier, bilinear
    up-sampling.

    Long, Shelhamer, Darrell: Fully convolutional networks for semantic segmentation. CVPR 2015, arXiv 1411.4038; He,
    Zhang, Ren, Sun: Deep residual learning for image recognition. CVPR 2016, arXiv 1512.03385. ``net`` has the
    parameter names of torchvision's ResNet.
    """

    citation = "Long et al., CVPR 2015, arXiv 1411.4038; He et al., CVPR 2016, arXiv 1512.03385"

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        depth = int(spec.name.rsplit("_r", 1)[1])
        widths = WIDTHS[depth]
        self.net = timm_model(spec.name, f"resnet{depth}", in_chans=spec.in_channels, output_stride=8)
        inner = widths[-1] // 4
        self.reduce = nn.Sequential(
            nn.Conv2d(widths[-1], inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
        )
        self.classify = nn.Conv2d(inner, spec.num_outputs, 1)
        self.reduce.apply(kaiming_fan_out)
        self.steps = 1
        paths = [f"net.layer{i + 1}.{len(getattr(self.net, f'layer{i + 1}')) - 1}" for i in range(4)]
        names = ("enc0", "enc1", "enc2", "bottleneck")
        self.taps = (
            *(self.tap(n, w, s, p, correction=True) for n, w, s, p in zip(names, widths, STRIDES, paths, strict=True)),
            self.tap("dec3", inner, 8, "reduce"),
        )
        self.resume = {"bottleneck": 0, "dec3": 1}

    def encode(self, x: Tensor) -> list[Tensor]:
        """Output of the last layer, stride 8; there are no skips."""
        x = self.net.maxpool(self.net.act1(self.net.bn1(self.net.conv1(x))))
        return [self.net.layer4(self.net.layer3(self.net.layer2(self.net.layer1(x))))]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Convolution, batch norm, ReLU, dropout."""
        return self.reduce(x)

    def head(self, index: int, x: Tensor) -> Tensor:
        """Classifier, then bilinear interpolation to the input's resolution."""
        return functional.interpolate(self.classify(x), scale_factor=8, mode="bilinear", align_corners=False)


for _depth in WIDTHS:
    NETWORKS.register(f"fcn_r{_depth}")(NetworkEntry(Fcn, Fcn.citation, ranks=(2,), divisor=8))
