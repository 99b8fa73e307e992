"""Feature maps pooled to a bounded number of nodes, for methods that compare all pairs of places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        grown = [axis for axis in range(len(size)) if _may_grow(cells, axis, size, max_nodes)]
        if not grown:
            return tuple(cells)
        cells[min(grown, key=lambda axis: cells[axis])] += 1


def _may_grow(cells: Sequence[int], axis: int, size: Sequence[int], max_nodes: int) -> bool:
    more = prod(cells) // cells[axis] * (cells[axis] + 1)
    return cells[axis] < size[axis] and more <= max_nodes


def pool_nodes(features: Tensor, cells: Sequence[int], kind: Literal["mean", "max"] = "mean") -> Tensor:
    """Pool ``(B, C, *spatial)`` over a grid of cells: ``(B, C, nodes)``, by mean or maximum."""
    grid: Any = tuple(cells)
    return _POOLS[kind, features.ndim - 2](features, grid).flatten(2)


_POOLS: dict[tuple[str, int], Callable[[Tensor, Any], Tensor]] = {
    ("mean", 2): F.adaptive_avg_pool2d,
    ("mean", 3): F.adaptive_avg_pool3d,
    ("max", 2): F.adaptive_max_pool2d,
    ("max", 3): F.adaptive_max_pool3d,
}


def common_size(student: Tensor, teacher: Tensor) -> tuple[int, ...]:
    """The smaller of both maps' sides along every axis."""
    return tuple(min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))


def pool_alike(
    student: Tensor, teacher: Tensor, max_nodes: int, kind: Literal["mean", "max"] = "mean"
) -> tuple[Tensor, Tensor]:
    """Both maps pooled over the finest common grid of at most ``max_nodes`` cells: ``(B, C, nodes)`` each."""
    cells = cells_per_axis(common_size(student, teacher), max_nodes)
    return pool_nodes(student, cells, kind), pool_nodes(teacher, cells, kind)


def halves(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps max-pooled by windows of half their sides, ``(B, C, nodes)`` each.

    A window that reaches beyond the map counts, so that an odd side above 1 has three cells instead of two. Where the
    maps differ in size the smaller one decides how many cells there are.
    """
    size = common_size(student, teacher)
    cells = [-(-n // max(n // 2, 1)) for n in size]
    return _half(student, size, cells), _half(teacher, size, cells)


def _half(features: Tensor, size: tuple[int, ...], cells: Sequence[int]) -> Tensor:
    if tuple(features.shape[2:]) != size:
        return pool_nodes(features, cells, "max")
    window = [max(n // 2, 1) for n in size]
    pool = F.max_pool3d if features.ndim == 5 else F.max_pool2d
    return pool(features, window, window, ceil_mode=True).flatten(2)
