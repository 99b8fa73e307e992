"""Feature maps pooled to a bounded number of nodes, for methods that compare all pairs of places."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor


def cells_per_axis(size: Sequence[int], max_nodes: int) -> tuple[int, ...]:
    """The finest grid of at most ``max_nodes`` cells over a map of this size, as equal along the axes as the sizes
    allow.
    """
    cells = [1] * len(size)
    while True:
        grown = [
            a for a in range(len(size)) if cells[a] < size[a] and prod(cells) // cells[a] * (cells[a] + 1) <= max_nodes
        ]
        if not grown:
            return tuple(cells)
        cells[min(grown, key=lambda a: cells[a])] += 1


def pool_nodes(features: Tensor, cells: Sequence[int], kind: Literal["mean", "max"] = "mean") -> Tensor:
    """Pool ``(B, C, *spatial)`` over a grid of cells: ``(B, C, nodes)``, by mean or maximum."""
    grid: Any = tuple(cells)
    if features.ndim == 5:
        return (
            F.adaptive_avg_pool3d(features, grid) if kind == "mean" else F.adaptive_max_pool3d(features, grid)
        ).flatten(2)
    return (F.adaptive_avg_pool2d(features, grid) if kind == "mean" else F.adaptive_max_pool2d(features, grid)).flatten(
        2
    )
