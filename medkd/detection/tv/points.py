"""The head of RepPoints: sets of points in place of boxes, and boxes from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.detection.tv.backbones import CHANNELS, GROUPS
from medkd.detection.tv.deformable import POINTS, SIDE, DeformableConv

Transform = Literal["moment", "minmax"]
_BLOCKS = 3
_GRADIENT = 0.1  # share of the later convolutions' gradient that reaches the first points
_MOMENT_GRADIENT = 0.01  # and of the box loss' that reaches the factors of the moments
_TINY = 1e-12  # squared strides, so that points on one spot have a gradient
_PRIOR = 0.01  # probability of an object that training starts from


@dataclass(frozen=True)
class PointsPrediction:
    """What the head says on one level of ``a`` cells, row by row.

    Attributes:
        logits: ``(B, K, a)``.
        first: points ``(B, a, 9, 2)`` as (x, y), in strides from the cell's own point.
        refined: the same after refinement.
    """

    logits: Tensor
    first: Tensor
    refined: Tensor


class PointsHead(nn.Module):
    """Two towers; the box tower places nine points per cell, where deformable convolutions read both towers to classify
    and to refine them.

    Yang, Liu, Hu, Wang, Lin: "RepPoints: point set representation for object detection", ICCV 2019, arXiv 1904.11490.

    Args:
        classes: ``K``.
        transform: how points become a box, see :meth:`boxes`.
    """

    taps: Tensor

    def __init__(self, classes: int, transform: Transform) -> None:
        super().__init__()
        self.transform = transform
        self.class_tower = _tower()
        self.box_tower = _tower()
        self.to_first = nn.Sequential(_conv(CHANNELS, 3), nn.ReLU(), _conv(2 * POINTS, 1))
        self.class_conv = DeformableConv(CHANNELS)
        self.to_class = _conv(classes, 1, -math.log((1 - _PRIOR) / _PRIOR))
        self.refine_conv = DeformableConv(CHANNELS)
        self.to_refined = _conv(2 * POINTS, 1)
        self.factors = nn.Parameter(torch.zeros(2)) if transform == "moment" else None
        steps = torch.arange(SIDE, dtype=torch.float32) - SIDE // 2
        taps = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)  # y, x
        self.register_buffer("taps", taps.reshape(1, 2 * POINTS, 1, 1), persistent=False)

    def forward(self, feature: Tensor) -> PointsPrediction:
        """All predictions on one level from its neck map ``(B, 256, rows, columns)``."""
        of_class, of_box = self.class_tower(feature), self.box_tower(feature)
        first = self.to_first(of_box).float()
        gentle = first.detach() + _GRADIENT * (first - first.detach())
        offsets = gentle - self.taps
        logits = self.to_class(F.relu(self.class_conv(of_class, offsets))).float()
        moved = self.to_refined(F.relu(self.refine_conv(of_box, offsets))).float()
        return PointsPrediction(logits.flatten(2), _points(first), _points(moved + first.detach()))

    def boxes(self, points: Tensor) -> Tensor:
        """Boxes ``(..., 4)`` of point sets ``(..., 9, 2)``: left, top, right, bottom.

        ``moment``: the mean plus and minus the standard deviation (of n − 1), times a trained factor ``exp(λ)`` per
        axis; ``minmax``: the smallest box that holds all points.
        """
        if self.factors is None:
            return torch.cat((points.amin(-2), points.amax(-2)), -1)
        middle = points.mean(-2)
        spread = (points.var(-2) + _TINY).sqrt()
        factors = self.factors.detach() + _MOMENT_GRADIENT * (self.factors - self.factors.detach())
        half = spread * factors.exp()
        return torch.cat((middle - half, middle + half), -1)


def _tower() -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(_BLOCKS):
        conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        nn.init.normal_(conv.weight, std=0.01)
        layers += [conv, nn.GroupNorm(GROUPS, CHANNELS), nn.ReLU()]
    return nn.Sequential(*layers)


def _conv(channels: int, side: int, bias: float = 0.0) -> nn.Conv2d:
    layer = nn.Conv2d(CHANNELS, channels, side, padding=side // 2)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]  # the layer has one
    return layer


def _points(maps: Tensor) -> Tensor:
    """``(B, 18, rows, columns)`` with y before x → ``(B, rows · columns, 9, 2)`` with x before y."""
    return maps.flatten(2).transpose(1, 2).unflatten(-1, (POINTS, 2)).flip(-1)
