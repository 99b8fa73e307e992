"""Fully convolutional network on a dilated ResNet, 2D: ``fcn_r18`` and ``fcn_r50``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from medkd.core.errors import RunError
from medkd.core.features import Tap
from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder
from medkd.networks.initialization import kaiming_fan_out

WIDTHS = {18: (64, 128, 256, 512), 50: (256, 512, 1024, 2048), 101: (256, 512, 1024, 2048)}
STRIDES = (4, 8, 8, 8)
NAMES = ("enc0", "enc1", "enc2", "bottleneck")


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
        self.encoder_path, self.encoder_name = "net", f"resnet{depth}"
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
        *encoder, bottleneck = resnet_taps(self, widths)
        self.set_taps(encoder, bottleneck, [self.tap("dec3", inner, 8, "reduce")])

    def encode(self, x: Tensor) -> list[Tensor]:
        """Output of the last layer, stride 8; there are no skips."""
        third = to_third_layer(self.net, x)
        return [self.net.layer4(third)]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Convolution, batch norm, ReLU, dropout."""
        return self.reduce(x)

    def head(self, index: int, x: Tensor) -> Tensor:
        """Classifier, then bilinear interpolation to the input's resolution."""
        return enlarged(self.classify(x))


def resnet_taps(network: EncoderDecoder, widths: Sequence[int]) -> list[Tap]:
    """Taps on the last blocks of the four layers of a dilated ResNet ``net``; the fourth is the bottleneck."""
    taps = []
    for number, name in enumerate(NAMES, start=1):
        width = widths[number - 1]
        stride = STRIDES[number - 1]
        blocks = getattr(network.net, f"layer{number}")
        last = f"net.layer{number}.{len(blocks) - 1}"
        taps.append(network.tap(name, width, stride, last, correction=True))
    return taps


def to_third_layer(resnet: Any, x: Tensor) -> Tensor:
    """A ResNet of timm up to its third layer."""
    stem = resnet.act1(resnet.bn1(resnet.conv1(x)))
    first = resnet.layer1(resnet.maxpool(stem))
    return resnet.layer3(resnet.layer2(first))


def enlarged(logits: Tensor) -> Tensor:
    """Logits of stride 8 at the input's resolution."""
    return functional.interpolate(logits, scale_factor=8, mode="bilinear", align_corners=False)


for _depth in (18, 50):
    NETWORKS.register(f"fcn_r{_depth}")(NetworkEntry(build=Fcn, citation=Fcn.citation, ranks=(2,), divisor=8))
