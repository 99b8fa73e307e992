"""The medical 2D library's FCN: ResNet-V1c of stride 8, a head of two convolutions and a join, an auxiliary head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder
from medkd.networks.fcn import STRIDES, WIDTHS, timm_model
from medkd.networks.initialization import kaiming_fan_out

_STEM = 32
_DROPOUT = 0.1
NAMES = ("enc0", "enc1", "enc2", "bottleneck")


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class FcnD8(EncoderDecoder):
    """ResNet-V1c with output stride 8; two convolutions, joined with their input by a third, and a classifier.

    With deep supervision the second output is that of the auxiliary head on the third stage, at full resolution.

    Long, Shelhamer, Darrell: Fully convolutional networks for semantic segmentation. CVPR 2015, arXiv 1411.4038;
    configuration ``fcn_r50-d8`` of mmsegmentation. ``fcn_r18`` and ``fcn_r50`` have the plain stem and one convolution.
    """

    citation = "Long et al., CVPR 2015, arXiv 1411.4038; mmsegmentation's fcn_r50-d8"

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        depth = int(spec.name.split("_")[1].removeprefix("r"))
        widths = WIDTHS[depth]
        options = {"in_chans": spec.in_channels, "output_stride": 8, "stem_type": "deep", "stem_width": _STEM}
        self.net = timm_model(spec.name, f"resnet{depth}", **options)
        if depth == 18:  # in the library's basic blocks only the first convolution is dilated
            for block in (*self.net.layer3, *self.net.layer4):
                block.conv2.dilation, block.conv2.padding = (1, 1), (1, 1)
        inner, side = widths[3] // 4, widths[2] // 4
        self.convs = nn.Sequential(_layer(widths[3], inner), _layer(inner, inner))
        self.join = _layer(widths[3] + inner, inner)
        self.classify = nn.Sequential(nn.Dropout2d(_DROPOUT), nn.Conv2d(inner, spec.num_outputs, 1))
        self.auxiliary = nn.Sequential(
            _layer(widths[2], side), nn.Dropout2d(_DROPOUT), nn.Conv2d(side, spec.num_outputs, 1)
        )
        for part in (self.convs, self.join, self.classify, self.auxiliary):
            part.apply(kaiming_fan_out)
        self.steps = 1
        encoder = []
        for index, (name, width, stride) in enumerate(zip(NAMES, widths, STRIDES, strict=True)):
            last = len(getattr(self.net, f"layer{index + 1}")) - 1
            encoder.append(self.tap(name, width, stride, f"net.layer{index + 1}.{last}", correction=True))
        self.taps = (*encoder, self.tap("dec3", inner, 8, "join"))
        self.resume = {"bottleneck": 0, "dec3": 1}
        self.deep_supervision = spec.deep_supervision
        self.deep_supervision_strides = ((1, 1), (1, 1)) if spec.deep_supervision else ()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """See :meth:`EncoderDecoder.forward`; the auxiliary head's logits come second."""
        found = super().forward(x)
        if not isinstance(found, list):
            return found
        return [*found, _enlarged(self.auxiliary(self._third))]

    def encode(self, x: Tensor) -> list[Tensor]:
        """Output of the last layer, stride 8; there are no skips."""
        x = self.net.maxpool(self.net.act1(self.net.bn1(self.net.conv1(x))))
        self._third = self.net.layer3(self.net.layer2(self.net.layer1(x)))
        return [self.net.layer4(self._third)]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Two convolutions, and a third on them and their input."""
        return self.join(torch.cat((x, self.convs(x)), 1))

    def head(self, index: int, x: Tensor) -> Tensor:
        """Dropout and classifier, then bilinear interpolation to the input's resolution."""
        return _enlarged(self.classify(x))


def _enlarged(logits: Tensor) -> Tensor:
    return functional.interpolate(logits, scale_factor=8, mode="bilinear", align_corners=False)


for _depth in WIDTHS:
    NETWORKS.register(f"fcn_r{_depth}_d8")(
        NetworkEntry(FcnD8, FcnD8.citation, ranks=(2,), divisor=8, deep_supervision=True)
    )
