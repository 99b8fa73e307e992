"""Convolutions whose taps are moved.

Dai et al., "Deformable convolutional networks", ICCV 2017, arXiv 1703.06211.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula
from torchvision.ops import deform_conv2d

SIDE = 3
"""Of the kernels."""
POINTS = SIDE * SIDE
"""Taps of a kernel."""


@register_flop_formula(torch.ops.torchvision.deform_conv2d)
def _operations(
    image: Sequence[int], weight: Sequence[int], *others: Any, out_shape: Sequence[int], **more: Any
) -> int:
    """Floating point operations of a deformable convolution, as of a plain one."""
    return 2 * out_shape[0] * out_shape[2] * out_shape[3] * prod(weight)


class DeformableConv(nn.Module):
    """A 3 × 3 convolution without bias whose taps are moved by offsets ``(B, 18, rows, columns)``: for each tap y,
    then x.
    """

    def __init__(self, channels: int, groups: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, channels // groups, SIDE, SIDE))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """``(B, channels, rows, columns)``, in float32 under any autocast."""
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight.float()
            return deform_conv2d(x.float(), offsets.float(), weight, stride=self.stride, padding=SIDE // 2)


class SelfDeformingConv(DeformableConv):
    """A convolution that learns where its taps read; it starts as the plain one in whose place it stands, with the
    name of its weights.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.groups, conv.stride[0])
        self.weight = nn.Parameter(conv.weight.detach())
        self.offset = nn.Conv2d(conv.in_channels, 2 * POINTS, SIDE, conv.stride[0], padding=SIDE // 2)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]  # the layer has one

    def forward(self, x: Tensor, offsets: Tensor | None = None) -> Tensor:
        """With its own offsets where none are given."""
        return super().forward(x, self.offset(x) if offsets is None else offsets)
