"""ESPNetV2: depthwise dilated pyramids, 0.28 M parameters in 3D."""

from __future__ import annotations

from math import ceil, gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder, numbered
from medkd.networks.initialization import kaiming_fan_out
from medkd.networks.layers import average_pool, batch_norm, convolution, global_average_pool, linear_mode

WIDTHS = (32, 64, 128, 256)
DECODER_WIDTHS = (64, 48, 32)
BRANCHES = 4
SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)
# a pooled map of fewer voxels per axis than this has no neighbourhood left for a kernel of 3
SMALLEST_MAP = 5
# the original's rule, half the number of classes, leaves one single channel for three classes
NARROWEST_PYRAMID, WIDEST_PYRAMID = 8, 16


def _norm_act(rank: int, width: int) -> list[nn.Module]:
    return [batch_norm(rank)(width), nn.PReLU(width)]


def _conv(
    rank: int, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Module:
    padding = dilation * (kernel // 2)
    layer = convolution(rank)
    return layer(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)


def _pyramids(count: int, rank: int, width: int, limit: int) -> nn.Sequential:
    units: list[nn.Module] = []
    for _ in range(count):
        units.append(Pyramid(rank, width, width, limit))
    return nn.Sequential(*units)


class Pyramid(nn.Module):
    """EESP unit: grouped 1 × 1 reduction, four depthwise dilated convolutions summed hierarchically, grouped 1 × 1
    expansion.

    With stride 1 it is a residual block with PReLU at the end; with stride 2 it ends with the expansion.

    Args:
        rank: spatial dimensions.
        inputs: channels in.
        outputs: channels out, a multiple of four.
        limit: largest receptive field, in voxels, of a dilated 3-kernel; a branch beyond it falls back to dilation 1.
        stride: 1 or 2.
    """

    def __init__(self, rank: int, inputs: int, outputs: int, limit: int, stride: int = 1) -> None:
        super().__init__()
        width = outputs // BRANCHES
        reduction = _conv(rank, inputs, width, 1, groups=BRANCHES)
        self.reduce = nn.Sequential(reduction, *_norm_act(rank, width))
        self.branches = nn.ModuleList()
        for dilation in self._dilations(limit):
            self.branches.append(_conv(rank, width, width, 3, stride, width, dilation))
        self.merge = nn.Sequential(*_norm_act(rank, outputs))
        expansion = _conv(rank, outputs, outputs, 1, groups=BRANCHES)
        self.expand = nn.Sequential(expansion, batch_norm(rank)(outputs))
        self.act = nn.PReLU(outputs) if stride == 1 else None

    @staticmethod
    def _dilations(limit: int) -> list[int]:
        """Dilation per branch, rising: 1, 2, … as far as a kernel of 3 stays within the limit, else 1."""
        dilations = []
        for dilation in range(1, BRANCHES + 1):
            field = 2 * dilation + 1
            dilations.append(dilation if field <= limit else 1)
        return sorted(dilations)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` → ``(B, outputs, *spatial / stride)``."""
        reduced = self.reduce(x)
        maps = [self.branches[0](reduced)]
        for branch in self.branches[1:]:
            maps.append(branch(reduced) + maps[-1])
        result = self.expand(self.merge(torch.cat(maps, 1)))
        return result if self.act is None else self.act(result + x)


class Down(nn.Module):
    """Halves the resolution: average pooling joined with a strided :class:`Pyramid`, plus the pooled image as
    reinforcement.
    """

    def __init__(self, rank: int, image_channels: int, inputs: int, outputs: int, limit: int) -> None:
        super().__init__()
        self.pool = average_pool(rank)(3, 2, 1)
        self.pyramid = Pyramid(rank, inputs, outputs - inputs, limit, stride=2)
        self.reinforce = nn.Sequential(
            _conv(rank, image_channels, image_channels, 3),
            *_norm_act(rank, image_channels),
            _conv(rank, image_channels, outputs, 1),
            batch_norm(rank)(outputs),
        )
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` and the image at half of that resolution → ``(B, outputs, *spatial / 2)``."""
        halved = torch.cat((self.pool(x), self.pyramid(x)), 1)
        return self.act(halved + self.reinforce(image))


class PyramidPool(nn.Module):
    """Efficient pyramid pooling: depthwise convolutions at five scales, shuffled together and fused per channel.

    Args:
        rank: spatial dimensions.
        inputs: channels in.
        width: channels of the pyramid.
        outputs: channels out.
        logits: whether the result is logits (bias, no normalisation and activation).
    """

    def __init__(self, rank: int, inputs: int, width: int, outputs: int, *, logits: bool = False) -> None:
        super().__init__()
        self.mode = linear_mode(rank)
        self.shrink: Any = functional.adaptive_avg_pool3d if rank == 3 else functional.adaptive_avg_pool2d
        projection = _conv(rank, inputs, width, 1)
        self.project = nn.Sequential(projection, *_norm_act(rank, width))
        self.scales = nn.ModuleList()
        for _ in SCALES:
            self.scales.append(_conv(rank, width, width, 3, groups=width))
        joined = width * len(SCALES)
        self.norm = nn.Sequential(*_norm_act(rank, joined))
        fusion = _conv(rank, joined, width, 3, groups=width)
        self.fuse = nn.Sequential(fusion, *_norm_act(rank, width))
        self.out = convolution(rank)(width, outputs, 1, bias=logits)
        self.act = nn.Identity() if logits else nn.Sequential(*_norm_act(rank, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` → ``(B, outputs, *spatial)``."""
        x = self.project(x)
        maps = []
        for conv, scale in zip(self.scales, SCALES, strict=True):
            maps.append(self._at_scale(x, conv, scale))
        joined = self.norm(torch.cat(maps, 1))
        # shuffle: the five scales of one channel side by side, as the grouped convolution wants them
        by_scale = joined.unflatten(1, (len(SCALES), -1))
        shuffled = by_scale.transpose(1, 2).flatten(1, 2)
        return self.act(self.out(self.fuse(shuffled)))

    def _at_scale(self, x: Tensor, conv: nn.Module, scale: float) -> Tensor:
        size = list(x.shape[2:])
        scaled = [max(ceil(n * scale), SMALLEST_MAP) for n in size]
        if scale == 1:
            return conv(x)
        if scale < 1:
            return self._resize(conv(self.shrink(x, scaled)), size)
        return self.shrink(conv(self._resize(x, scaled)), size)

    def _resize(self, x: Tensor, size: list[int]) -> Tensor:
        return functional.interpolate(x, size, mode=self.mode, align_corners=True)


class GatedProjection(nn.Module):
    """Brings a skip feature to the decoder's width: grouped 3-convolution times a gate from the global average."""

    def __init__(self, rank: int, inputs: int, outputs: int) -> None:
        super().__init__()
        weighing = _conv(rank, inputs, outputs, 1)
        self.gate = nn.Sequential(global_average_pool(rank), weighing, nn.Sigmoid())
        projection = _conv(rank, inputs, outputs, 3, groups=gcd(inputs, outputs))
        self.project = nn.Sequential(projection, *_norm_act(rank, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` → ``(B, outputs, *spatial)``."""
        return self.project(x) * self.gate(x)


class EspNetV2(EncoderDecoder):
    """ESPNetV2 (width factor 1) with a pyramid-pooling decoder, total stride 16.

    Mehta, Rastegari, Shapiro, Hajishirzi: ESPNetv2: a light-weight, power efficient, and general purpose convolutional
    neural network. CVPR 2019, arXiv 1811.11431; the 3D form is the student of the ACF-BCKD paper. Unlike there, the
    decoder's pyramids keep at least eight channels however few the classes are.
    """

    citation = "Mehta et al., CVPR 2019, arXiv 1811.11431"

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        rank = self.rank
        image = spec.in_channels
        width = max(min(spec.num_outputs // 2, WIDEST_PYRAMID), NARROWEST_PYRAMID)
        self.mode = linear_mode(rank)
        self.pool = average_pool(rank)(3, 2, 1)
        first = _conv(rank, image, WIDTHS[0], 3, stride=2)
        self.level1 = nn.Sequential(first, *_norm_act(rank, WIDTHS[0]))
        self.down2 = Down(rank, image, WIDTHS[0], WIDTHS[1], limit=13)
        self.down3 = Down(rank, image, WIDTHS[1], WIDTHS[2], limit=11)
        self.level3 = _pyramids(3, rank, WIDTHS[2], limit=9)
        self.down4 = Down(rank, image, WIDTHS[2], WIDTHS[3], limit=9)
        self.level4 = _pyramids(7, rank, WIDTHS[3], limit=7)
        self.steps = len(DECODER_WIDTHS)
        self.pools = nn.ModuleList()
        inputs = WIDTHS[-1]
        for outputs in DECODER_WIDTHS:
            self.pools.append(PyramidPool(rank, inputs, width, outputs))
            inputs = outputs
        self.skips = nn.ModuleList()
        for skip, outputs in zip(WIDTHS[-2::-1], DECODER_WIDTHS, strict=True):
            self.skips.append(GatedProjection(rank, skip, outputs))
        self.merges = nn.ModuleList()
        for outputs in DECODER_WIDTHS:
            self.merges.append(nn.Sequential(*_norm_act(rank, outputs)))
        self.classify = PyramidPool(rank, DECODER_WIDTHS[-1], width, spec.num_outputs, logits=True)
        self.apply(kaiming_fan_out)
        encoder = (
            self.tap("enc0", 32, 2, "level1"),
            self.tap("enc1", 64, 4, "down2"),
            self.tap("enc2", 128, 8, "level3.2", correction=True),
        )
        bottleneck = self.tap("bottleneck", 256, 16, "level4.6", correction=True)
        merges = numbered("merges", self.steps)
        decoder = self.decoder_taps(DECODER_WIDTHS, merges, finest=1)
        self.set_taps(encoder, bottleneck, decoder)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Outputs of the four levels, strides 2, 4, 8 and 16."""
        quarter = self.pool(self.pool(x))
        eighth = self.pool(quarter)
        first = self.level1(x)
        second = self.down2(first, quarter)
        third = self.level3(self.down3(second, eighth))
        fourth = self.level4(self.down4(third, self.pool(eighth)))
        return [first, second, third, fourth]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Pyramid pooling, double the resolution, add the projected skip."""
        finer = self._double(self.pools[index](x))
        projected = self.skips[index](self.skip(index, features))
        return self.merges[index](finer + projected)

    def head(self, index: int, x: Tensor) -> Tensor:
        """Pyramid pooling to logits, doubled in resolution."""
        return self._double(self.classify(x))

    def _double(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2, mode=self.mode, align_corners=True)


NETWORKS.register("espnetv2")(NetworkEntry(build=EspNetV2, citation=EspNetV2.citation, divisor=16))
