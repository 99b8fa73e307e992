"""Exact squared Euclidean distance transforms of many masks at once, for devices that are slow to start an operation.

On a GPU the time of :mod:`medkd.distillation.boundaries.distance` is that of starting thousands of small operations.
Here all masks go through each axis together: along the first one by running maxima, along the others as ``d(i) = min_j
(g(j) + s² (i − j)²)`` over all ``j`` (Saito and Toriwaki, Pattern Recognition 27(11), 1994), in chunks. The number of
operations does not depend on the size: at most :data:`MOST_CHUNKS` chunks of two operations per axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_CHUNKS = 32  # per axis
_CHUNK = 2**24  # numbers that a chunk has at least, where there are so many


def squared_distances(masks: Tensor, spacing: Sequence[float]) -> Tensor:
    """Squared distance from every voxel to the nearest True voxel of its mask.

    Args:
        masks: ``(M, *spatial)``, bool.
        spacing: length of a voxel along each axis.

    Returns:
        ``(M, *spatial)``, float32, in units of ``spacing`` squared; infinite in a mask without any True voxel.
    """
    last = masks.ndim - 1
    field = _line_distances(masks).mul_(spacing[-1]).square_()
    for axis in range(1, last):
        field = _lowest_parabolas(field.movedim(axis, last), spacing[axis - 1]).movedim(last, axis)
    return field


def squared_boundary_distances_at_once(masks: Tensor, spacing: Sequence[float]) -> Tensor:
    """Squared distance of every voxel to the nearest voxel of the other kind; 0 where a mask is all False or all True.

    Args:
        masks: ``(M, *spatial)``, bool.
        spacing: length of a voxel along each axis.

    Returns:
        ``(M, *spatial)``, float32. It equals :func:`medkd.distillation.boundaries.distance.squared_boundary_distances`.
    """
    to_inside, to_outside = squared_distances(torch.cat((masks, ~masks)), spacing).chunk(2)
    found = torch.where(masks, to_outside, to_inside)
    return found.masked_fill_(found.isinf(), 0.0)


def mixed_masks(masks: Tensor) -> Tensor:
    """The places of the masks of ``(M, *spatial)`` that are neither all False nor all True; it waits for the device
    once.
    """
    flat = masks.flatten(1)
    return (flat.any(1) & ~flat.all(1)).nonzero().flatten()


def chunk_rows(rows: int, length: int) -> int:
    """How many lines of this length a chunk has."""
    return max(-(-rows // MOST_CHUNKS), _CHUNK // length**2, 1)


def _line_distances(masks: Tensor) -> Tensor:
    """Distance in voxels to the nearest True voxel of the same line along the last axis; infinite in a line without."""
    places = torch.arange(masks.shape[-1], device=masks.device, dtype=torch.float32)
    before = torch.where(masks, places, -torch.inf).cummax(-1).values
    after = torch.where(masks, places, torch.inf).flip(-1).cummin(-1).values.flip(-1)
    return torch.minimum(places - before, after - places)


def _lowest_parabolas(field: Tensor, spacing: float) -> Tensor:
    """``min_j field(j) + (spacing (i − j))²`` along the last axis."""
    length = field.shape[-1]
    lines = field.reshape(-1, length)
    places = torch.arange(length, device=field.device, dtype=torch.float32)
    costs = ((places.unsqueeze(1) - places) * spacing).square()
    lowest = torch.empty_like(lines)
    rows = min(chunk_rows(len(lines), length), max(len(lines), 1))
    sums = lines.new_empty(rows, length, length)
    for start in range(0, len(lines), rows):
        part = lines[start : start + rows]
        candidates = sums[: len(part)]
        torch.add(part.unsqueeze(1), costs, out=candidates)
        torch.amin(candidates, -1, out=lowest[start : start + rows])
    return lowest.view(field.shape)
