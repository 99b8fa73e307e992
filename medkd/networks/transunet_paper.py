"""TransUNet as its authors' code has it: own ResNet-50 and vision transformer, which their weights fit."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medkd.core.errors import RunError
from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder
from medkd.networks.transunet import DECODER_WIDTHS, HIDDEN, SKIP_WIDTHS, TOKEN, Up, layer

STEM = 64
BLOCKS = (3, 4, 9)
DEPTH, HEADS, MLP = 12, 12, 3072
DROPOUT = 0.1
_COLOURS = 3
_GROUPS, _EPS = 32, 1e-6


class StandardConv(nn.Conv2d):
    """Convolution whose kernels are brought to mean 0 and variance 1."""

    def forward(self, x: Tensor) -> Tensor:
        """As a convolution."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-5)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> StandardConv:
    return StandardConv(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Bottleneck(nn.Module):
    """Residual unit of three standardised convolutions with group norms; its shortcut has a group per channel."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1, self.norm1 = _conv(inputs, middle, 1), nn.GroupNorm(_GROUPS, middle, _EPS)
        self.conv2, self.norm2 = _conv(middle, middle, 3, stride), nn.GroupNorm(_GROUPS, middle, _EPS)
        self.conv3, self.norm3 = _conv(middle, outputs, 1), nn.GroupNorm(_GROUPS, outputs, _EPS)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.GroupNorm(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` → ``(B, outputs, H / stride, W / stride)``."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = functional.relu(self.norm2(self.conv2(y)))
        return functional.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class Attention(nn.Module):
    """Self-attention of 12 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(TOKEN, TOKEN) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, N, 768)`` → the same shape."""
        heads = [part(tokens).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        return self.out(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a norm and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(TOKEN, _EPS), nn.LayerNorm(TOKEN, _EPS)
        self.attention = Attention()
        self.mlp = nn.Sequential(
            nn.Linear(TOKEN, MLP), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(MLP, TOKEN), nn.Dropout(DROPOUT)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, N, 768)`` → the same shape."""
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


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
        self.stem = nn.Sequential(
            StandardConv(self.colours, STEM, 7, 2, 3, bias=False), nn.GroupNorm(_GROUPS, STEM, _EPS), nn.ReLU()
        )
        stages, inputs = [], STEM
        for index, blocks in enumerate(BLOCKS):
            outputs = 4 * STEM * 2**index
            units = [Bottleneck(inputs, outputs, 1 if index == 0 else 2)]
            units += [Bottleneck(outputs, outputs, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*units))
            inputs = outputs
        self.stages = nn.ModuleList(stages)
        self.embed = nn.Conv2d(inputs, TOKEN, 1)
        places = spec.patch_size[0] // 16 * (spec.patch_size[1] // 16)
        self.position = nn.Parameter(torch.zeros(1, places, TOKEN))
        self.drop = nn.Dropout(DROPOUT)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(TOKEN, _EPS)
        self.reduce = nn.Sequential(*layer(TOKEN, HIDDEN))
        joined = zip((HIDDEN, *DECODER_WIDTHS[:-1]), (*SKIP_WIDTHS[::-1], 0), DECODER_WIDTHS, strict=True)
        self.decoder = nn.ModuleList(Up(i, s, o) for i, s, o in joined)
        self.classify = nn.Conv2d(DECODER_WIDTHS[-1], spec.num_outputs, 3, padding=1)
        self.steps = len(DECODER_WIDTHS)
        deepest = self.tap("enc3", inputs, 16, f"stages.2.{BLOCKS[2] - 1}", correction=True)
        bottleneck = self.tap("bottleneck", HIDDEN, 16, "reduce")
        decoder = [self.tap(f"dec{3 - i}", w, 2 ** (3 - i), f"decoder.{i}") for i, w in enumerate(DECODER_WIDTHS)]
        self.taps = (self.tap("enc0", STEM, 2, "stem"), deepest, bottleneck, *decoder)
        self.resume = {tap.name: index for index, tap in enumerate((bottleneck, *decoder))}

    def encode(self, x: Tensor) -> list[Tensor]:
        """Convolutional features of strides 2, 4 and 8, and the transformer's at stride 16 as a map of 512 channels."""
        size = tuple(x.shape[2:])
        if size != self.spec.patch_size:
            raise RunError(f"'{self.spec.name}' was built for patches of {self.spec.patch_size}, found {size}.")
        features = [self.stem(x.expand(-1, self.colours, -1, -1))]
        x = functional.max_pool2d(features[0], 3, 2)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            wanted = [side // 2 ** (index + 2) for side in size]
            missing = [w - have for w, have in zip(wanted, x.shape[2:], strict=True)]
            features.append(functional.pad(x, (0, missing[1], 0, missing[0])))
        tokens = self.drop(self.embed(x).flatten(2).transpose(1, 2) + self.position)
        tokens = self.norm(self.blocks(tokens)).transpose(1, 2)
        return [*features[:-1], self.reduce(tokens.unflatten(2, x.shape[2:]))]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """One up-sampling step; the last one has no skip."""
        return self.decoder[index](x, features[-(index + 2)] if index < self.steps - 1 else None)

    def head(self, index: int, x: Tensor) -> Tensor:
        """Convolution to logits."""
        return self.classify(x)


NETWORKS.register("transunet_paper")(NetworkEntry(TransUNetPaper, TransUNetPaper.citation, ranks=(2,), divisor=16))
