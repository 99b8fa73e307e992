"""TransUNet as its authors' code has it: own ResNet-50 and vision transformer, which their weights fit."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder, numbered
from medkd.networks.transunet import DECODER_WIDTHS, HIDDEN, TOKEN, check_size, decoder_steps, layer

STEM = 64
BLOCKS = (3, 4, 9)
DEEPEST = 16 * STEM
DEPTH, HEADS, MLP = 12, 12, 3072
DROPOUT = 0.1
_COLOURS = 3
_GROUPS, _EPS = 32, 1e-6


class StandardConv(nn.Conv2d):
    """Convolution whose kernels are brought to mean 0 and variance 1."""

    def forward(self, x: Tensor) -> Tensor:
        """As a convolution."""
        each_kernel = (1, 2, 3)
        variance, mean = torch.var_mean(self.weight, each_kernel, keepdim=True, correction=0)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-5)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, width, _EPS)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> StandardConv:
    return StandardConv(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Bottleneck(nn.Module):
    """Residual unit of three standardised convolutions with group norms; its shortcut has a group per channel."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1 = _conv(inputs, middle, 1)
        self.norm1 = _norm(middle)
        self.conv2 = _conv(middle, middle, 3, stride)
        self.norm2 = _norm(middle)
        self.conv3 = _conv(middle, outputs, 1)
        self.norm3 = _norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            projection = _conv(inputs, outputs, 1, stride)
            self.shortcut = nn.Sequential(projection, nn.GroupNorm(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` → ``(B, outputs, H / stride, W / stride)``."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = functional.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return functional.relu(y + self.shortcut(x))


class Attention(nn.Module):
    """Self-attention of 12 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(TOKEN, TOKEN)
        self.key = nn.Linear(TOKEN, TOKEN)
        self.value = nn.Linear(TOKEN, TOKEN)
        self.out = nn.Linear(TOKEN, TOKEN)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, N, 768)`` → the same shape."""
        query = self._by_head(self.query(tokens))
        key = self._by_head(self.key(tokens))
        value = self._by_head(self.value(tokens))
        found = functional.scaled_dot_product_attention(query, key, value)
        return self.out(found.transpose(1, 2).flatten(2))

    @staticmethod
    def _by_head(tokens: Tensor) -> Tensor:
        """``(B, N, 768)`` → ``(B, 12, N, 64)``."""
        return tokens.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a norm and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(TOKEN, _EPS)
        self.norm2 = nn.LayerNorm(TOKEN, _EPS)
        self.attention = Attention()
        widen = nn.Linear(TOKEN, MLP)
        narrow = nn.Linear(MLP, TOKEN)
        self.mlp = nn.Sequential(widen, nn.GELU(), nn.Dropout(DROPOUT), narrow, nn.Dropout(DROPOUT))

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, N, 768)`` → the same shape."""
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


def _residual_stages() -> nn.ModuleList:
    """ResNet-50's first three stages, strides 4, 8 and 16; the first does not halve, since a pooling lies before it."""
    stages = nn.ModuleList()
    inputs, outputs, stride = STEM, 4 * STEM, 1
    for blocks in BLOCKS:
        units = [Bottleneck(inputs, outputs, stride)]
        for _ in range(blocks - 1):
            units.append(Bottleneck(outputs, outputs, 1))
        stages.append(nn.Sequential(*units))
        inputs, outputs, stride = outputs, 2 * outputs, 2
    return stages


class TransUNetPaper(EncoderDecoder):
    """R50-ViT-B/16 with the authors' padding, norms and dropout, and four up-sampling steps with three skips.

    Chen, Lu, Yu, Luo, Adeli, Wang, Lu, Yuille, Zhou: TransUNet: transformers make strong encoders for medical image
    segmentation. 2021, arXiv 2102.04306. The pooling behind the stem is not padded, so that the first stage's map is
    one cell smaller; as a skip it is filled up with zeros. One channel is shown three times, as to weights from
    ImageNet.
    ``transunet`` is the same on timm's hybrid, which differs in padding, norms and dropout.

    Raises:
        RunError: (in ``forward``) the input has another size than the training patch.
    """

    citation = "Chen et al., 2021, arXiv 2102.04306"

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        self.colours = _COLOURS if spec.in_channels == 1 else spec.in_channels
        self.stem = nn.Sequential(_conv(self.colours, STEM, 7, 2), _norm(STEM), nn.ReLU())
        self.stages = _residual_stages()
        self.embed = nn.Conv2d(DEEPEST, TOKEN, 1)
        height, width = spec.patch_size
        places = (height // 16) * (width // 16)
        self.position = nn.Parameter(torch.zeros(1, places, TOKEN))
        self.drop = nn.Dropout(DROPOUT)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(TOKEN, _EPS)
        self.reduce = nn.Sequential(*layer(TOKEN, HIDDEN))
        self.decoder = decoder_steps()
        self.classify = nn.Conv2d(DECODER_WIDTHS[-1], spec.num_outputs, 3, padding=1)
        self.steps = len(DECODER_WIDTHS)
        last = f"stages.2.{BLOCKS[2] - 1}"
        encoder = (self.tap("enc0", STEM, 2, "stem"), self.tap("enc3", DEEPEST, 16, last, correction=True))
        bottleneck = self.tap("bottleneck", HIDDEN, 16, "reduce")
        decoder = self.decoder_taps(DECODER_WIDTHS, numbered("decoder", self.steps))
        self.set_taps(encoder, bottleneck, decoder)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Convolutional features of strides 2, 4 and 8, and the transformer's at stride 16 as a map of 512 channels."""
        check_size(x, self.spec)
        height, width = self.spec.patch_size
        stride = 4
        features = [self.stem(x.expand(-1, self.colours, -1, -1))]
        x = functional.max_pool2d(features[0], 3, 2)
        for stage in self.stages:
            x = stage(x)
            below = height // stride - x.shape[2]
            beside = width // stride - x.shape[3]
            features.append(functional.pad(x, (0, beside, 0, below)))
            stride *= 2
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.blocks(self.drop(tokens + self.position))
        deepest = self.norm(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
        return [*features[:-1], self.reduce(deepest)]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """One up-sampling step; the last one has no skip."""
        skip = self.skip(index, features) if index < self.steps - 1 else None
        return self.decoder[index](x, skip)

    def head(self, index: int, x: Tensor) -> Tensor:
        """Convolution to logits."""
        return self.classify(x)


NETWORKS.register("transunet_paper")(
    NetworkEntry(build=TransUNetPaper, citation=TransUNetPaper.citation, ranks=(2,), divisor=16)
)
