"""Mobile U-Net: inverted residual blocks on the way down and up (13.65 M parameters, 2.4 G multiply-adds in 3D)."""

from __future__ import annotations

from torch import Tensor, nn

from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder, numbered
from medkd.networks.initialization import kaiming_fan_out
from medkd.networks.layers import batch_norm, convolution, transposed_convolution

STEM = 32
# per encoder stage: (channels, expansion, blocks, stride of the first block) of each group of blocks
STAGES = (
    ((16, 1, 1, 1),),
    ((24, 6, 2, 2),),
    ((32, 6, 3, 2),),
    ((64, 6, 4, 2), (96, 6, 3, 1)),
    ((160, 6, 3, 2), (320, 6, 1, 1)),
)
BOTTLENECK = 1280
DECODER_WIDTHS = (96, 32, 24, 16)
EXPANSION = 6


def _conv_norm(
    rank: int, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, up: bool = False
) -> list[nn.Module]:
    kind = transposed_convolution(rank) if up else convolution(rank)
    padding = (kernel - 1) // 2
    layer = kind(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return [layer, batch_norm(rank)(outputs)]


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1 × 1 expansion, depthwise convolution, linear 1 × 1 projection; a shortcut where the stride
    is 1.

    Args:
        rank: spatial dimensions.
        inputs: channels in.
        outputs: channels out; where they differ and the stride is 1, the shortcut is a 1 × 1 convolution.
        expansion: factor of the inner width.
        stride: of the depthwise convolution.
        up: use a transposed depthwise convolution of kernel 4, which doubles the resolution.
    """

    def __init__(
        self, rank: int, inputs: int, outputs: int, expansion: int, stride: int = 1, *, up: bool = False
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        kernel = 4 if up else 3
        self.body = nn.Sequential(
            *_conv_norm(rank, inputs, inner, 1),
            nn.ReLU6(inplace=True),
            *_conv_norm(rank, inner, inner, kernel, stride=stride, groups=inner, up=up),
            nn.ReLU6(inplace=True),
            *_conv_norm(rank, inner, outputs, 1),
        )
        self.residual = stride == 1
        self.shortcut: nn.Module = nn.Identity()
        if self.residual and inputs != outputs:
            self.shortcut = convolution(rank)(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` → ``(B, outputs, …)``, halved for stride 2, doubled for ``up``."""
        y = self.body(x)
        return y + self.shortcut(x) if self.residual else y


class Up(nn.Module):
    """A decoder stage: a doubling block, then the skip feature is added."""

    def __init__(self, rank: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = InvertedResidual(rank, inputs, outputs, EXPANSION, stride=2, up=True)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` and the skip ``(B, outputs, *2 spatial)`` → ``(B, outputs, *2 spatial)``."""
        return self.block(x) + skip


Groups = tuple[tuple[int, int, int, int], ...]


def _width(groups: Groups) -> int:
    """Channels of a stage: those of its last group."""
    return groups[-1][0]


def _stage(rank: int, inputs: int, groups: Groups) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for width, expansion, count, stride in groups:
        for _ in range(count):
            blocks.append(InvertedResidual(rank, inputs, width, expansion, stride))
            inputs = width
            stride = 1
    return nn.Sequential(*blocks)


class MobileUNet(EncoderDecoder):
    """MobileNetV2's encoder and a mirrored decoder of transposed inverted residual blocks, total stride 32.

    Jing, Wang, Rätsch, Zhang: Mobile-Unet: an efficient convolutional neural network for fabric defect detection.
    Textile Research Journal 92, 2022, DOI 10.1177/0040517520928604; blocks of Sandler et al., CVPR 2018, arXiv
    1801.04381; the 3D form is a student of the ACF-BCKD paper, here without the shortcut convolutions that its code
    creates and never uses.
    """

    citation = "Jing et al., Textile Research Journal 2022, 10.1177/0040517520928604"

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        rank = self.rank
        image = spec.in_channels
        self.stem = nn.Sequential(
            *_conv_norm(rank, image, image, 3, stride=2, groups=image),
            nn.ReLU6(inplace=True),
            convolution(rank)(image, STEM, 1, bias=False),
        )
        widths = [_width(groups) for groups in STAGES]
        self.encoder = nn.ModuleList()
        inputs = STEM
        for groups, width in zip(STAGES, widths, strict=True):
            self.encoder.append(_stage(rank, inputs, groups))
            inputs = width
        self.widen = convolution(rank)(inputs, BOTTLENECK, 1)
        self.decoder = nn.ModuleList()
        inputs = BOTTLENECK
        for width in DECODER_WIDTHS:
            self.decoder.append(Up(rank, inputs, width))
            inputs = width
        last = DECODER_WIDTHS[-1]
        self.finest = transposed_convolution(rank)(last, last, 4, 2, 1, groups=last, bias=False)
        self.classify = convolution(rank)(last, spec.num_outputs, 1)
        self.head_path = "classify"
        self.apply(kaiming_fan_out)
        self.steps = len(DECODER_WIDTHS) + 1
        encoder = []
        for level, stage in enumerate(list(self.encoder)[:-1]):
            blocks = len(stage)  # type: ignore[arg-type]
            path = f"encoder.{level}.{blocks - 1}"
            shortcut = level > 0  # the last block of every stage but the first has an identity shortcut
            encoder.append(self.tap(f"enc{level}", widths[level], 2 ** (level + 1), path, correction=shortcut))
        bottleneck = self.tap("bottleneck", BOTTLENECK, 32, "widen")
        decoder = self.decoder_taps(DECODER_WIDTHS, numbered("decoder", 4), finest=1)
        decoder.append(self.tap("dec0", last, 1, "finest"))
        self.set_taps(encoder, bottleneck, decoder)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Outputs of the stages of stride 2, 4, 8 and 16, and the widened one of stride 32."""
        x = self.stem(x)
        features = []
        for stage in self.encoder:
            x = stage(x)
            features.append(x)
        return [*features[:-1], self.widen(x)]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Double the resolution and add the skip; the last step has none."""
        if index == self.steps - 1:
            return self.finest(x)
        return self.decoder[index](x, self.skip(index, features))

    def head(self, index: int, x: Tensor) -> Tensor:
        """1 × 1 convolution."""
        return self.classify(x)


NETWORKS.register("mobile_unet")(NetworkEntry(build=MobileUNet, citation=MobileUNet.citation, divisor=32))
