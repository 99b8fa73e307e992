"""MISSFormer: a U-shaped hierarchical transformer with a bridge between its scales, 2D."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder, numbered

WIDTHS = (64, 128, 320, 512)
HEADS = (1, 2, 5, 8)
# the key map of every stage is reduced to stride 32
REDUCTIONS = (8, 4, 2, 1)
DEPTH = 2
EXPANSION = 4
BRIDGES = 4
UNIT = WIDTHS[0]


def to_tokens(x: Tensor) -> Tensor:
    """Map ``(B, C, H, W)`` to tokens ``(B, H W, C)``."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, size: Sequence[int]) -> Tensor:
    """Tokens ``(B, H W, C)`` to the map ``(B, C, H, W)``."""
    return x.transpose(1, 2).unflatten(2, tuple(size))


class MixFeedForward(nn.Module):
    """Enhanced mix feed-forward: ``linear(GELU(norm(y + depthwise(y))))`` with ``y = linear(x)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = width * EXPANSION
        self.widen = nn.Linear(width, inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.norm = nn.LayerNorm(inner)
        self.narrow = nn.Linear(inner, width)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Tokens ``(B, H W, C)`` of a map of ``size`` → tokens of the same shape."""
        y = self.widen(x)
        mixed = to_tokens(self.depthwise(to_map(y, size)))
        return self.narrow(functional.gelu(self.norm(y + mixed)))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention of tokens ``(B, N, C)`` over keys and values ``(B, M, C)``."""
    found = functional.scaled_dot_product_attention(
        _by_head(query, heads), _by_head(key, heads), _by_head(value, heads)
    )
    return found.transpose(1, 2).flatten(2)


def _by_head(tokens: Tensor, heads: int) -> Tensor:
    """Tokens ``(B, N, C)`` to ``(B, heads, N, C / heads)``."""
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def _blocks(level: int) -> nn.ModuleList:
    """The transformer blocks of a stage."""
    blocks = nn.ModuleList()
    for _ in range(DEPTH):
        blocks.append(Block(WIDTHS[level], HEADS[level], REDUCTIONS[level]))
    return blocks


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values come from a map reduced by a strided convolution."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.reduce = nn.Conv2d(width, width, reduction, reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(width) if reduction > 1 else None

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Tokens ``(B, H W, C)`` of a map of ``size`` → tokens of the same shape."""
        source = x
        if self.reduce is not None and self.norm is not None:
            source = self.norm(to_tokens(self.reduce(to_map(x, size))))
        key, value = self.key_value(source).chunk(2, dim=2)
        return self.project(attend(self.query(x), key, value, self.heads))


class Block(nn.Module):
    """Pre-norm transformer block: efficient attention, then the enhanced mix feed-forward, each with a shortcut."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attention = EfficientAttention(width, heads, reduction)
        self.feed_forward = MixFeedForward(width)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Tokens ``(B, H W, C)`` of a map of ``size`` → tokens of the same shape."""
        x = x + self.attention(self.norm1(x), size)
        return x + self.feed_forward(self.norm2(x), size)


class EncoderStage(nn.Module):
    """Overlapping patch embedding, two blocks, layer norm; maps in, maps out."""

    def __init__(self, level: int, inputs: int) -> None:
        super().__init__()
        width = WIDTHS[level]
        kernel, stride = (7, 4) if level == 0 else (3, 2)
        self.embed = nn.Conv2d(inputs, width, kernel, stride, kernel // 2)
        self.norm_in = nn.LayerNorm(width)
        self.norm_out = nn.LayerNorm(width)
        self.blocks = _blocks(level)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` → ``(B, width, H / stride, W / stride)``."""
        x = self.embed(x)
        size = x.shape[2:]
        tokens = self.norm_in(to_tokens(x))
        for block in self.blocks:
            tokens = block(tokens, size)
        return to_map(self.norm_out(tokens), size)


class BridgeLayer(nn.Module):
    """One layer of the enhanced transformer context bridge, on the tokens of all scales cut into units of 64 channels.

    The keys and values of every scale come from its map reduced to stride 32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(UNIT)
        self.norm2 = nn.LayerNorm(UNIT)
        self.norm_keys = nn.LayerNorm(UNIT)
        self.query = nn.Linear(UNIT, UNIT)
        self.key_value = nn.Linear(UNIT, 2 * UNIT)
        self.project = nn.Linear(UNIT, UNIT)
        self.reduce = nn.ModuleList()
        for width, reduction in zip(WIDTHS, REDUCTIONS, strict=True):
            if reduction > 1:
                self.reduce.append(nn.Conv2d(width, width, reduction, reduction))
        self.feed_forward = nn.ModuleList()
        for width in WIDTHS:
            self.feed_forward.append(MixFeedForward(width))

    def forward(self, x: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
        """Tokens ``(B, N, 64)`` of maps of ``sizes``, finest first → tokens of the same shape."""
        x = x + self._attention(self.norm1(x), sizes)
        scales = split_scales(self.norm2(x), sizes)
        fed = []
        for tokens, feed_forward, size in zip(scales, self.feed_forward, sizes, strict=True):
            fed.append(feed_forward(tokens, size))
        return x + join_scales(fed)

    def _attention(self, x: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
        *fine, coarsest = split_scales(x, sizes)
        scales = []
        for tokens, reduce, size in zip(fine, self.reduce, sizes[:-1], strict=True):
            reduced = reduce(to_map(tokens, size))
            scales.append(to_tokens(reduced))
        source = self.norm_keys(join_scales([*scales, coarsest]))
        key, value = self.key_value(source).chunk(2, dim=2)
        return self.project(attend(self.query(x), key, value, 1))


def join_scales(tokens: Sequence[Tensor]) -> Tensor:
    """Tokens ``(B, H W, C)`` of every scale → ``(B, N, 64)``: each token is cut into units of 64 channels."""
    return torch.cat([t.reshape(t.shape[0], -1, UNIT) for t in tokens], 1)


def split_scales(x: Tensor, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The inverse of :func:`join_scales` for maps of ``sizes``."""
    scales = []
    begin = 0
    for (height, breadth), width in zip(sizes, WIDTHS, strict=True):
        places = height * breadth
        units = places * width // UNIT
        part = x[:, begin : begin + units]
        scales.append(part.reshape(x.shape[0], places, width))
        begin += units
    return scales


class Expand(nn.Module):
    """Patch expanding: a linear layer whose channels are laid out as ``factor`` × ``factor`` finer pixels, then layer
    norm.
    """

    def __init__(self, width: int, outputs: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.widen = nn.Linear(width, outputs * factor**2, bias=False)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, width, H, W)`` → ``(B, outputs, factor H, factor W)``."""
        wide = to_map(self.widen(to_tokens(x)), x.shape[2:])
        finer = functional.pixel_shuffle(wide, self.factor)
        return to_map(self.norm(to_tokens(finer)), finer.shape[2:])


class DecoderStage(nn.Module):
    """Expand, join the bridged skip by a linear layer, two blocks; maps in, maps out."""

    def __init__(self, level: int, inputs: int) -> None:
        super().__init__()
        width = WIDTHS[level]
        self.expand = Expand(inputs, inputs // 2, 2)
        self.join = nn.Linear(inputs // 2 + width, width)
        self.blocks = _blocks(level)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` and the skip ``(B, width, 2H, 2W)`` → ``(B, width, 2H, 2W)``."""
        joined = torch.cat((self.expand(x), skip), 1)
        tokens = self.join(to_tokens(joined))
        for block in self.blocks:
            tokens = block(tokens, skip.shape[2:])
        return to_map(tokens, skip.shape[2:])


class MissFormer(EncoderDecoder):
    """Four encoder stages, a context bridge of four layers, three decoder stages and a fourfold expansion; total stride
    32.

    Huang, Deng, Li, Yuan, Fu: MISSFormer: an effective transformer for 2D medical image segmentation. IEEE TMI 42(5),
    2023, DOI 10.1109/TMI.2022.3230943, arXiv 2109.07162.
    """

    citation = "Huang et al., IEEE TMI 2023, arXiv 2109.07162"

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        self.encoder = nn.ModuleList()
        inputs = spec.in_channels
        for level, width in enumerate(WIDTHS):
            self.encoder.append(EncoderStage(level, inputs))
            inputs = width
        self.bridge = nn.ModuleList(BridgeLayer() for _ in range(BRIDGES))
        self.decoder = nn.ModuleList()
        for level in (2, 1, 0):
            self.decoder.append(DecoderStage(level, WIDTHS[level + 1]))
        self.expand = Expand(WIDTHS[0], WIDTHS[0], 4)
        self.classify = nn.Conv2d(WIDTHS[0], spec.num_outputs, 1)
        self.head_path = "classify"
        self.apply(_initialise)
        self.steps = len(self.decoder) + 1
        encoder = self.encoder_taps(WIDTHS, numbered("encoder", 3), stride=4)
        bottleneck = self.tap("bottleneck", WIDTHS[-1], 32, "encoder.3")
        decoder = self.decoder_taps(WIDTHS[2::-1], numbered("decoder", 3), finest=2)
        decoder.append(self.tap("dec0", WIDTHS[0], 1, "expand"))
        self.set_taps(encoder, bottleneck, decoder)
        # the bridge lies between the bottleneck's tap and the decoder, so the continuation begins behind the first step
        del self.resume[bottleneck.name]

    def encode(self, x: Tensor) -> list[Tensor]:
        """The four scales, strides 4 to 32, after the bridge."""
        maps = []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        sizes = [m.shape[2:] for m in maps]
        tokens = join_scales([to_tokens(m) for m in maps])
        for layer in self.bridge:
            tokens = layer(tokens, sizes)
        bridged = split_scales(tokens, sizes)
        return [to_map(scale, size) for scale, size in zip(bridged, sizes, strict=True)]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """A decoder stage; the last step expands to full resolution without a skip."""
        if index == self.steps - 1:
            return self.expand(x)
        return self.decoder[index](x, self.skip(index, features))

    def head(self, index: int, x: Tensor) -> Tensor:
        """1 × 1 convolution."""
        return self.classify(x)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


NETWORKS.register("missformer")(NetworkEntry(build=MissFormer, citation=MissFormer.citation, ranks=(2,), divisor=32))
