"""ResNet-V1c with output stride 8 and an auxiliary head on its third stage: what mmsegmentation's networks share."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from medkd.core.run import NetworkSpec
from medkd.networks.encoder_decoder import EncoderDecoder
from medkd.networks.fcn import WIDTHS, enlarged, resnet_taps, timm_model, to_third_layer
from medkd.networks.initialization import kaiming_fan_out

DROPOUT = 0.1
V1C = {18: "", 50: "resnet50c", 101: "resnet101c"}  # timm's names; it has no such ResNet-18
_STEM = 32
_AUXILIARY = 0.4  # weight of the auxiliary head's loss in mmsegmentation


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 3, dilation: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, batch norm and ReLU."""
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def classifier(inputs: int, outputs: int) -> list[nn.Module]:
    """Dropout of whole channels, and a convolution to logits."""
    return [nn.Dropout2d(DROPOUT), nn.Conv2d(inputs, outputs, 1)]


def resnet_v1c(spec: NetworkSpec, depth: int, **options: Any) -> Any:
    """timm's ResNet as the library has it: three convolutions as its stem, output stride 8 by dilation."""
    stem = {"stem_type": "deep", "stem_width": _STEM}
    net = timm_model(spec.name, f"resnet{depth}", in_chans=spec.in_channels, output_stride=8, **stem, **options)
    if depth == 18:  # in the library's basic blocks only the first convolution is dilated
        for block in (*net.layer3, *net.layer4):
            block.conv2.dilation = (1, 1)
            block.conv2.padding = (1, 1)
    return net


class DilatedResNet(EncoderDecoder):
    """The backbone, a head of one step that the subclass makes, a classifier, and the auxiliary head.

    With deep supervision the second output is that of the auxiliary head, at full resolution.

    Args:
        spec: what to build; the name says the depth, ``fcn_r18_d8`` or ``pspnet_r101``.

    Attributes:
        net: timm's ResNet.
        widths: of the four stages.
        inner: channels of the head.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        depth = int(spec.name.split("_")[1].removeprefix("r"))
        self.widths = WIDTHS[depth]
        self.inner = self.widths[3] // 4
        self.net = resnet_v1c(spec, depth)
        self.encoder_path, self.encoder_name = "net", V1C[depth]
        side = self.widths[2] // 4
        self.add_head()
        self.classify = nn.Sequential(*classifier(self.inner, spec.num_outputs))
        self.auxiliary = nn.Sequential(conv_bn_relu(self.widths[2], side), *classifier(side, spec.num_outputs))
        self.auxiliary_weight = _AUXILIARY
        for name, part in self.named_children():
            if name != "net":
                part.apply(kaiming_fan_out)
        self.steps = 1
        *encoder, bottleneck = resnet_taps(self, self.widths)
        self.set_taps(encoder, bottleneck, [self.tap("dec3", self.inner, 8, "join")])
        self.deep_supervision = spec.deep_supervision
        self.deep_supervision_strides = ((1, 1), (1, 1)) if spec.deep_supervision else ()

    def add_head(self) -> None:
        """Make the head's layers; ``join`` is the last, with :attr:`inner` channels."""
        raise NotImplementedError

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

    def head(self, index: int, x: Tensor) -> Tensor:
        """Dropout and classifier, then bilinear interpolation to the input's resolution."""
        return enlarged(self.classify(x))
