"""Operators that ONNX lacks, written with those that it has, while a network is traced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_pooling(size: int, bins: int) -> Tensor:
    """The matrix ``(bins, size)`` of adaptive mean pooling along one axis.

    >>> mean_pooling(4, 2)
    tensor([[0.5000, 0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.5000, 0.5000]])
    """
    matrix = torch.zeros(bins, size)
    for index in range(bins):
        first, last = index * size // bins, -(-(index + 1) * size // bins)
        matrix[index, first:last] = 1 / (last - first)
    return matrix


def separable_mean_pool(x: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """Adaptive mean pooling of ``(B, C, *spatial)`` as one matrix product per axis; equal to torch's up to rounding."""
    rank = x.ndim - 2
    wanted = [output_size] * rank if isinstance(output_size, int) else list(output_size)
    for axis, bins in enumerate(wanted):
        size = int(x.shape[axis + 2])
        if bins is None or int(bins) == size:
            continue
        matrix = mean_pooling(size, int(bins)).to(x)
        x = torch.matmul(x.movedim(axis + 2, -1), matrix.T).movedim(-1, axis + 2)
    return x


@contextmanager
def exportable_operators() -> Iterator[None]:
    """Within this block torch's adaptive mean pooling of volumes is the one that can be exported."""
    own = F.adaptive_avg_pool3d
    F.adaptive_avg_pool3d = separable_mean_pool  # type: ignore[assignment]
    try:
        yield
    finally:
        F.adaptive_avg_pool3d = own
