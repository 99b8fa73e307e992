"""LCOV-Net: convolutions factorised along and across slices with a gate in between (0.81 M parameters in 3D)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder, numbered
from medkd.networks.initialization import kaiming_fan_out
from medkd.networks.layers import average_pool, batch_norm, convolution, linear_mode, max_pool

WIDTHS = (16, 32, 64, 128, 256)


def _layer(rank: int, inputs: int, outputs: int, kernel: tuple[int, ...], groups: int = 1) -> nn.Sequential:
    kind: Any = convolution(rank)
    padding = tuple(k // 2 for k in kernel)
    layer = kind(inputs, outputs, kernel, padding=padding, groups=groups, bias=False)
    return nn.Sequential(layer, batch_norm(rank)(outputs), nn.ReLU6(inplace=True))


def _across(rank: int) -> tuple[int, ...]:
    """Kernel through the slices: the first axis is the coarsest one of a planned patch. In 2D nothing is left of it."""
    return (3, 1, 1) if rank == 3 else (1, 1)


def _within(rank: int) -> tuple[int, ...]:
    return (1, 3, 3) if rank == 3 else (3, 3)


def _upsample(rank: int) -> nn.Module:
    return nn.Upsample(scale_factor=2, mode=linear_mode(rank), align_corners=False)


class Block(nn.Module):
    """``a`` = convolution across slices; ``b`` = convolution within slices of ``a``; result ``b + g a`` with a spatial
    gate ``g``.

    The gate is the sigmoid of a 1 × 1 convolution of ``a`` at half resolution, brought back by linear interpolation.
    """

    def __init__(self, rank: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.across = _layer(rank, inputs, outputs, _across(rank))
        self.within = _layer(rank, outputs, outputs, _within(rank))
        self.gate = nn.Sequential(
            average_pool(rank)(4, 2, 1),
            convolution(rank)(outputs, outputs, 1, bias=False),
            batch_norm(rank)(outputs),
            _upsample(rank),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` → ``(B, outputs, *spatial)``, even sizes."""
        a = self.across(x)
        return self.within(a) + self.gate(a) * a


class Bottleneck(nn.Module):
    """As :class:`Block`, with a depthwise convolution within slices and a gate at full resolution."""

    def __init__(self, rank: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.across = _layer(rank, inputs, outputs, _across(rank))
        self.within = _layer(rank, outputs, outputs, _within(rank), groups=outputs)
        self.gate = nn.Sequential(_layer(rank, outputs, outputs, (1,) * rank), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` → ``(B, outputs, *spatial)``."""
        a = self.across(x)
        return self.within(a) + self.gate(a) * a


class LcovNet(EncoderDecoder):
    """LCOV-Net in the thin form (16 to 256 channels), total stride 16.

    Zhao, Zhong, Xiong, Liu, Wang, Wang, Zhang: Efficient multi-organ segmentation from 3D abdominal CT images with
    lightweight network and knowledge distillation. IEEE TMI 42(9), 2023, DOI 10.1109/TMI.2023.3262680. Widths of the
    student of the ACF-BCKD paper, without dropout and the auxiliary heads that it never uses. Across slices means along
    the first axis of the patch.
    """

    citation = "Zhao et al., IEEE TMI 2023, 10.1109/TMI.2023.3262680"

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        rank = self.rank
        self.encoder = nn.ModuleList()
        inputs = spec.in_channels
        for width in WIDTHS[:-1]:
            self.encoder.append(Block(rank, inputs, width))
            inputs = width
        self.pool = max_pool(rank)(2)
        self.bottleneck = Bottleneck(rank, WIDTHS[-2], WIDTHS[-1])
        narrow = WIDTHS[-2::-1]
        steps = list(zip(WIDTHS[:0:-1], narrow, strict=True))
        self.ups = nn.ModuleList()
        for inputs, outputs in steps:
            halving = _layer(rank, inputs, outputs, (1,) * rank)
            self.ups.append(nn.Sequential(halving, _upsample(rank)))
        self.decoder = nn.ModuleList()
        for inputs, outputs in steps:
            self.decoder.append(Block(rank, inputs, outputs))
        self.classify = convolution(rank)(WIDTHS[0], spec.num_outputs, 1, bias=False)
        self.head_path = "classify"
        self.apply(kaiming_fan_out)
        self.steps = len(self.decoder)
        self.set_taps(
            self.encoder_taps(WIDTHS, numbered("encoder", self.steps)),
            self.tap("bottleneck", WIDTHS[-1], 2**self.steps, "bottleneck"),
            self.decoder_taps(narrow, numbered("decoder", self.steps)),
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        """Outputs of the four levels and of the bottleneck, finest first."""
        features: list[Tensor] = []
        for level in self.encoder:
            features.append(level(x))
            x = self.pool(features[-1])
        return [*features, self.bottleneck(x)]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Halve the channels, double the resolution, join the skip, one block."""
        finer = self.ups[index](x)
        return self.decoder[index](torch.cat((self.skip(index, features), finer), 1))

    def head(self, index: int, x: Tensor) -> Tensor:
        """1 × 1 convolution."""
        return self.classify(x)


NETWORKS.register("lcov_net")(NetworkEntry(build=LcovNet, citation=LcovNet.citation, divisor=16))
