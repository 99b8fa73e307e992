"""The medical 2D library's FCN: ResNet-V1c of stride 8, a head of two convolutions and a join, an auxiliary head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder
from medkd.networks.fcn import WIDTHS, enlarged, resnet_taps, timm_model, to_third_layer
from medkd.networks.initialization import kaiming_fan_out

_STEM = 32
_DROPOUT = 0.1
_AUXILIARY = 0.5  # weight of the auxiliary head's loss in the library's configuration


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _classifier(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Dropout2d(_DROPOUT), nn.Conv2d(inputs, outputs, 1)]


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
        stem = {"stem_type": "deep", "stem_width": _STEM}
        self.net = timm_model(spec.name, f"resnet{depth}", in_chans=spec.in_channels, output_stride=8, **stem)
        if depth == 18:  # in the library's basic blocks only the first convolution is dilated
            for block in (*self.net.layer3, *self.net.layer4):
                block.conv2.dilation = (1, 1)
                block.conv2.padding = (1, 1)
        inner = widths[3] // 4
        side = widths[2] // 4
        self.convs = nn.Sequential(_layer(widths[3], inner), _layer(inner, inner))
        self.join = _layer(widths[3] + inner, inner)
        self.classify = nn.Sequential(*_classifier(inner, spec.num_outputs))
        auxiliary = _layer(widths[2], side)
        self.auxiliary = nn.Sequential(auxiliary, *_classifier(side, spec.num_outputs))
        for part in (self.convs, self.join, self.classify, self.auxiliary):
            part.apply(kaiming_fan_out)
        self.steps = 1
        *encoder, bottleneck = resnet_taps(self, widths)
        self.set_taps(encoder, bottleneck, [self.tap("dec3", inner, 8, "join")])
        self.auxiliary_weight = _AUXILIARY
        self.deep_supervision = spec.deep_supervision
        self.deep_supervision_strides = ((1, 1), (1, 1)) if spec.deep_supervision else ()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """See :meth:`EncoderDecoder.forward`; the auxiliary head's logits come second."""
        found = super().forward(x)
        if not isinstance(found, list):
            return found
        return [*found, enlarged(self.auxiliary(self._third))]

    def encode(self, x: Tensor) -> list[Tensor]:
        """Output of the last layer, stride 8; there are no skips."""
        self._third = to_third_layer(self.net, x)
        return [self.net.layer4(self._third)]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Two convolutions, and a third on them and their input."""
        return self.join(torch.cat((x, self.convs(x)), 1))

    def head(self, index: int, x: Tensor) -> Tensor:
        """Dropout and classifier, then bilinear interpolation to the input's resolution."""
        return enlarged(self.classify(x))


for _depth in WIDTHS:
    NETWORKS.register(f"fcn_r{_depth}_d8")(
        NetworkEntry(build=FcnD8, citation=FcnD8.citation, ranks=(2,), divisor=8, deep_supervision=True)
    )
