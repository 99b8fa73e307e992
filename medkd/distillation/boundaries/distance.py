"""Exact squared Euclidean distance transforms, fast enough for every training step.

The transform is separable: the squared distance to a set is the lower envelope of parabolas, axis after axis,
``d(i) = min_j (g(j) + s² (i − j)²)`` (Saito and Toriwaki, Pattern Recognition 27(11), 1994; Felzenszwalb and
Huttenlocher, Theory of Computing 8, 2012). Each minimum is taken plane by plane with two vector instructions per voxel
and ``j``, and ``j`` runs over the bounding box of the set only, since everything outside it is infinitely high. So a
structure that fills a third of the patch costs a twentieth of a general transform, and nothing is approximated. That is
for the CPU; other devices have :mod:`medkd.distillation.boundaries.distance_batch`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medkd.distillation.boundaries.distance_batch import mixed_masks, squared_boundary_distances_at_once

Box = tuple[slice, ...]
HOST = "cpu"  # where one mask after another is faster than all at once


def bounding_boxes(masks: Tensor) -> list[Box | None]:
    """The smallest box that holds each mask of ``(M, *spatial)``, None where it is empty; one transfer to the host in
    all.
    """
    axes = range(1, masks.ndim)
    profiles = []
    for axis in axes:
        others = [a for a in axes if a != axis]
        profiles.append(masks.any(others))
    sizes = list(masks.shape[1:])
    boxes: list[Box | None] = []
    for row in torch.cat(profiles, 1).cpu():
        found = [part.nonzero().flatten() for part in row.split(sizes)]
        empty = len(found[0]) == 0
        boxes.append(None if empty else tuple(map(_span, found)))
    return boxes


def _span(places: Tensor) -> slice:
    """From the first to the last of rising places."""
    return slice(int(places[0]), int(places[-1]) + 1)


def squared_distance(mask: Tensor, box: Box, spacing: Sequence[float]) -> Tensor:
    """Squared distance from every voxel to the nearest True voxel.

    Args:
        mask: ``(*spatial)``, bool, with at least one True voxel.
        box: a box that holds all True voxels.
        spacing: length of a voxel along each axis.

    Returns:
        ``(*spatial)``, float32, in units of ``spacing`` squared; 0 inside the mask. The memory order of the axes may
        differ.
    """
    # Only the pass that comes last runs over the whole patch, so it should be along the axis where the box is shortest;
    # passes along the first memory axis have contiguous planes, so that axis is the last one.
    order = sorted(range(mask.ndim), key=lambda axis: box[axis].stop - box[axis].start)
    last = order[-1]
    inside = mask[box].permute(order)
    field = _line_distance(inside, box[last].start, mask.shape[last])
    field.mul_(spacing[last]).square_()
    for place in reversed(range(mask.ndim - 1)):
        axis = order[place]
        field = _envelope(field, place, box[axis].start, mask.shape[axis], spacing[axis])
    return field.permute([order.index(axis) for axis in range(mask.ndim)])


def _line_distance(mask: Tensor, start: int, size: int) -> Tensor:
    """Distance in voxels to the nearest True voxel of the same line along the last axis, which is widened to
    ``size``.
    """
    field = torch.full((size, *mask.shape[:-1]), torch.inf, device=mask.device)
    field[start : start + mask.shape[-1]].masked_fill_(mask.movedim(-1, 0), 0.0)
    planes = field.unbind(0)
    for i in range(1, size):
        torch.minimum(planes[i], planes[i - 1] + 1, out=planes[i])
    for i in reversed(range(size - 1)):
        torch.minimum(planes[i], planes[i + 1] + 1, out=planes[i])
    return field.movedim(0, -1).contiguous()


def _envelope(field: Tensor, axis: int, start: int, size: int, spacing: float) -> Tensor:
    """``min_j field(j) + (spacing (i − start − j))²`` for ``i`` in ``0..size-1`` along one axis."""
    length = field.shape[axis]
    reach = size
    if length == size:  # then result(i) ≤ field(i) ≤ max, which no parabola from further away can undercut
        highest = float(field.max())
        if highest != float("inf"):
            reach = min(size, int(highest**0.5 / spacing) + 1)
    offsets = torch.arange(1 - start - length, size - start, device=field.device).float()
    costs = (offsets * spacing).square().reshape(-1, *(1,) * (field.ndim - axis - 1))
    widened = list(field.shape)
    widened[axis] = size
    result = torch.full(widened, torch.inf, device=field.device)
    candidate = torch.empty_like(result)
    for j in range(length):
        low = max(start + j - reach, 0)
        high = min(start + j + reach + 1, size)
        there = result.narrow(axis, low, high - low)
        sum_ = candidate.narrow(axis, 0, high - low)
        first = length - 1 - j  # of the costs, for place 0
        torch.add(field.narrow(axis, j, 1), costs[first + low : first + high], out=sum_)
        torch.minimum(there, sum_, out=there)
    return result


def boundary_weights(kinds: Sequence[Tensor], spacing: Sequence[float]) -> Tensor:
    """The sum over kinds of the squared distance of every voxel to the boundary of its mask, see
    :func:`squared_boundary_distances`; masks that are all False or all True count as 0.

    Args:
        kinds: masks ``(M, *spatial)``, bool, alike in shape.
        spacing: length of a voxel along each axis.

    Returns:
        ``(M, *spatial)``, float32.
    """
    total = torch.zeros(kinds[0].shape, device=kinds[0].device)
    if total.device.type == HOST:
        for masks in kinds:
            for place, field in zip(total, squared_boundary_distances(masks, spacing), strict=True):
                if field is not None:
                    place += field
        return total
    places = mixed_masks(torch.cat(list(kinds)))
    flat = torch.cat(list(kinds))[places]
    fields = squared_boundary_distances_at_once(flat, spacing)
    return total.index_add_(0, places % len(total), fields)


def squared_boundary_distances(masks: Tensor, spacing: Sequence[float]) -> list[Tensor | None]:
    """``d(m)²`` with ``d(m) = EDT(m) + EDT(1 − m)``: squared distance of every voxel to the nearest voxel of the other
    kind.

    Args:
        masks: ``(M, *spatial)``, bool.
        spacing: length of a voxel along each axis.

    Returns:
        For each mask ``(*spatial)``, float32, or None where the mask is all False or all True and the distance is taken
        as 0.
    """
    found: list[Tensor | None] = []
    for mask, box in zip(masks, bounding_boxes(masks), strict=True):
        found.append(_squared_boundary_distance(mask, box, spacing) if box else None)
    return found


def _squared_boundary_distance(mask: Tensor, box: Box, spacing: Sequence[float]) -> Tensor | None:
    # A nearest voxel outside the mask never lies beyond the one-voxel rim of its box: moving it back onto the rim
    # brings it nearer.
    rim = tuple(map(_widened, box, mask.shape))
    outside = ~mask[rim]
    if not outside.any():
        return None
    distance = squared_distance(mask, box, spacing)
    whole = tuple(slice(0, size) for size in outside.shape)
    distance[rim] += squared_distance(outside, whole, spacing)
    return distance


def _widened(side: slice, size: int) -> slice:
    """One voxel more on both sides, within the mask."""
    return slice(max(side.start - 1, 0), min(side.stop + 1, size))
