"""Resampling by separable spline matrices: one small matrix per axis, applied as matrix products.

On grids that share their outer edges, spline interpolation is linear in the voxels and separable, so that resampling a
volume equals three products with matrices ``(size_out, size_in)``. The results equal
``skimage.transform.resize(order=3, mode="edge", anti_aliasing=False, clip=True)``, the interpolation of nnU-Net
(Isensee et al., Nature Methods 18, 2021, doi:10.1038/s41592-020-01008-z), to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Literal

import numpy as np
from scipy import ndimage

from medkd.core.plan import Resampling

ANISOTROPY_THRESHOLD = 3.0  # nnU-Net: above this ratio of spacings, the coarse axis is resampled on its own
_ROWS = 32  # rows of a matrix that are multiplied at once: small enough to skip most zeros, large enough for BLAS
_NEGLIGIBLE = 1e-8  # weights of the cubic prefilter fall by 0.268 per voxel; this keeps 14 on each side
_TIE = 1e-6  # scores nearer than this are equal up to float32 rounding

Kind = Literal["image", "label", "logits"]


@lru_cache(maxsize=48)
def axis_matrix(size_in: int, size_out: int, order: int) -> np.ndarray:
    """The matrix that resamples one axis.

    Order 0 takes the voxel whose cell holds the new centre ``(i + 0.5)·size_in/size_out``; orders 1 to 5 are splines
    with the edge voxel repeated outside.

    Returns:
        ``(size_out, size_in)`` float64, read-only (it is cached); the rows sum to 1.
    """
    if order == 0:
        matrix = np.zeros((size_out, size_in))
        matrix[np.arange(size_out), nearest_index(size_in, size_out)] = 1.0
    elif size_in == size_out:
        matrix = np.eye(size_in)
    else:
        factors = (size_out / size_in, 1)
        matrix = ndimage.zoom(np.eye(size_in), factors, order=order, mode="nearest", grid_mode=True)
    matrix.setflags(write=False)
    return matrix


def nearest_index(size_in: int, size_out: int) -> np.ndarray:
    """Index of the input voxel that each output voxel takes under order 0, ``(size_out,)``."""
    centres = size_in / size_out * (np.arange(size_out) + 0.5) - 0.5
    nearest = np.floor(centres + 0.5).astype(np.intp)
    return np.clip(nearest, 0, size_in - 1)


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]) -> tuple[int, ...]:
    """Shape of a grid of ``shape`` voxels of ``spacing`` mm after a change to ``new_spacing`` mm, at least 1 per
    axis.

    >>> resampled_shape((40, 512, 512), (5.0, 0.8, 0.8), (2.5, 1.6, 1.6))
    (80, 256, 256)
    """
    sizes = []
    for size, old, new in zip(shape, spacing, new_spacing, strict=True):
        sizes.append(max(1, round(old / new * size)))
    return tuple(sizes)


def coarse_axis(spacing: Sequence[float], new_spacing: Sequence[float], force: bool | None = None) -> int | None:
    """The axis to be resampled on its own, or None.

    It is the coarsest axis of the current spacing if that is anisotropic (largest over smallest above 3), else that of
    the new spacing under the same condition; where two axes are equally coarse there is none.

    Args:
        spacing: current voxel size in mm per axis.
        new_spacing: target voxel size in mm per axis.
        force: True separates the coarsest current axis always, False never.

    >>> coarse_axis((5.0, 0.8, 0.8), (2.5, 0.8, 0.8))
    0
    >>> coarse_axis((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)) is None
    True
    """
    if force is False:
        return None
    for candidate in map(list, (spacing, new_spacing)):
        coarsest = max(candidate)
        if force or coarsest / min(candidate) > ANISOTROPY_THRESHOLD:
            return candidate.index(coarsest) if candidate.count(coarsest) == 1 else None
    return None


def axis_orders(
    spacing: Sequence[float], new_spacing: Sequence[float], resampling: Resampling, kind: Kind
) -> tuple[int, ...]:
    """Interpolation order along each axis.

    Args:
        spacing: current voxel size in mm, in the plan's axis order.
        new_spacing: target voxel size in mm.
        resampling: the orders of the configuration.
        kind: what is resampled; logits and probabilities are ``"logits"``.
    """
    plane, through = {
        "image": (resampling.image_order, resampling.image_order_z),
        "label": (resampling.label_order, resampling.label_order_z),
        "logits": (resampling.logits_order, resampling.logits_order_z),
    }[kind]
    coarse = coarse_axis(spacing, new_spacing, resampling.force_separate_z)
    return tuple(through if axis == coarse else plane for axis in range(len(spacing)))


def resample_image(
    array: np.ndarray,
    shape: Sequence[int],
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    resampling: Resampling,
) -> np.ndarray:
    """Resample an image.

    Splines overshoot at edges; as in nnU-Net the result is clipped to the range of each input channel, or, where a
    coarse axis is resampled on its own, of each input slice across that axis.

    Args:
        array: ``(C, z, y, x)``.
        shape: new shape ``(z, y, x)``.
        spacing: current voxel size in mm.
        new_spacing: target voxel size in mm.
        resampling: orders.

    Returns:
        ``(C, *shape)`` float32; ``array`` itself where the shape does not change.
    """
    shape = tuple(shape)
    if array.shape[1:] == shape:
        return array
    orders = axis_orders(spacing, new_spacing, resampling, "image")
    coarse = coarse_axis(spacing, new_spacing, resampling.force_separate_z)
    result = np.empty((array.shape[0], *shape), dtype=np.float32)
    for index, channel in enumerate(array):
        channel = np.ascontiguousarray(channel, dtype=np.float32)
        result[index] = _resample_channel(channel, shape, orders, coarse)
    return result


def resample_label(
    label: np.ndarray,
    shape: Sequence[int],
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    resampling: Resampling,
) -> np.ndarray:
    """Resample a label map: every label's indicator is interpolated, and the largest score wins.

    nnU-Net gives a voxel to a label with a score of at least 0.5 and leaves it background where no label reaches that;
    taking the largest score agrees wherever one label has a majority and leaves no gaps where three labels meet. A tie
    goes to the larger label value, as there. Labels may be negative (-1 marks voxels outside the body mask).

    Args:
        label: ``(z, y, x)`` integers.
        shape: new shape ``(z, y, x)``.
        spacing: current voxel size in mm.
        new_spacing: target voxel size in mm.
        resampling: orders.

    Returns:
        ``shape``, of the type of ``label``; ``label`` itself where the shape does not change.
    """
    shape = tuple(shape)
    if label.shape == shape:
        return label
    orders = axis_orders(spacing, new_spacing, resampling, "label")
    return _largest_score(label, shape, list(map(axis_matrix, label.shape, shape, orders)))


def multiply(matrix: np.ndarray, array: np.ndarray, axis: int) -> np.ndarray:
    """Apply ``matrix`` ``(m, n)`` along ``axis`` (of size n) of a float32 array, skipping the zeros away from its
    band.
    """
    before, behind = array.shape[:axis], array.shape[axis + 1 :]
    outer, inner = prod(before), prod(behind)
    rows, columns = matrix.shape
    weights = matrix.astype(np.float32)
    source = np.ascontiguousarray(array).reshape(outer, columns, inner)
    result = np.empty((outer, rows, inner), dtype=np.float32)
    for start in range(0, rows, _ROWS):
        block = weights[start : start + _ROWS]
        used = _band(block, axis=0)
        block = block[:, used]
        out = result[:, start : start + _ROWS]
        if inner == 1:
            np.matmul(source[:, used, 0], block.T, out=out[..., 0])
        else:
            np.matmul(block, source[:, used], out=out)
    return result.reshape(*before, rows, *behind)


def _band(matrix: np.ndarray, axis: int) -> slice:
    """The rows (axis 1) or columns (axis 0) of a matrix from the first to the last that is not negligible along an
    axis; one where all are.
    """
    large = np.abs(matrix) > _NEGLIGIBLE
    used = np.flatnonzero(large.any(axis=axis))
    if not used.size:
        return slice(0, 1)
    return slice(int(used[0]), int(used[-1]) + 1)


def _resample_channel(
    channel: np.ndarray, shape: tuple[int, ...], orders: tuple[int, ...], coarse: int | None
) -> np.ndarray:
    if coarse is None:
        return _spline(channel, shape, orders, range(channel.ndim))
    old, new, order = channel.shape[coarse], shape[coarse], orders[coarse]
    in_plane = [axis for axis in range(channel.ndim) if axis != coarse]
    if new < old and order == 0:  # slices that nobody takes need no in-plane work
        channel = np.take(channel, nearest_index(old, new), axis=coarse)
        return _spline(channel, shape, orders, in_plane)
    result = _spline(channel, shape, orders, in_plane)
    if new == old:
        return result
    if order == 0:
        return np.take(result, nearest_index(old, new), axis=coarse)
    return multiply(axis_matrix(old, new, order), result, coarse)


def _spline(channel: np.ndarray, shape: tuple[int, ...], orders: tuple[int, ...], axes: Sequence[int]) -> np.ndarray:
    """Interpolate along ``axes``; overshoot is clipped to the range over these axes (per slice along the others)."""
    result = channel
    overshoots = False
    for axis in _cheapest_order(channel.shape, shape):
        old, new = channel.shape[axis], shape[axis]
        if axis in axes and old != new:
            result = multiply(axis_matrix(old, new, orders[axis]), result, axis)
            overshoots |= orders[axis] > 1
    if overshoots:
        low = channel.min(axis=tuple(axes), keepdims=True)
        high = channel.max(axis=tuple(axes), keepdims=True)
        np.clip(result, low, high, out=result)
    return result


def _largest_score(label: np.ndarray, shape: tuple[int, ...], matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Running arg-max over labels; each is interpolated only where its bounding box reaches."""
    lowest = int(label.min())
    boxes = ndimage.find_objects(label.astype(np.int32) - (lowest - 1))
    present = {value: box for value, box in enumerate(boxes, start=lowest) if box is not None}
    filler = 0 if 0 in present else max(present)  # the label that is not interpolated: 1 - the others
    del present[filler]
    result = np.full(shape, filler, dtype=label.dtype)
    best = np.zeros(shape, dtype=np.float32)
    total = np.zeros(shape, dtype=np.float32)
    for value, box in present.items():
        region, score = _score(label[box] == value, box, matrices)
        total[region] += score
        wins = (score >= best[region] - _TIE) & (score > _TIE)
        best[region] = np.where(wins, score, best[region])
        result[region][wins] = value
    rest = 1.0 - total
    ahead = np.where(result < filler, rest >= best - _TIE, rest > best + _TIE)
    result[ahead] = filler
    return result


def _score(
    mask: np.ndarray, box: Sequence[slice], matrices: Sequence[np.ndarray]
) -> tuple[tuple[slice, ...], np.ndarray]:
    """Interpolate a mask that is empty outside ``box``: the region of the output that it reaches, and its values
    there.
    """
    region, parts = [], []
    for matrix, part in zip(matrices, box, strict=True):
        columns = matrix[:, part]
        reached = _band(columns, axis=1)
        region.append(reached)
        parts.append(columns[reached])
    score = mask.astype(np.float32)
    for axis in _cheapest_order(mask.shape, list(map(len, parts))):
        if not _is_identity(parts[axis]):
            score = multiply(parts[axis], score, axis)
    return tuple(region), score


def _is_identity(matrix: np.ndarray) -> bool:
    rows, columns = matrix.shape
    return rows == columns and np.array_equal(matrix, np.eye(rows))


def _cheapest_order(old: Sequence[int], new: Sequence[int]) -> list[int]:
    """Axes from the most shrinking to the most growing, so that every product sees the fewest voxels."""
    return sorted(range(len(old)), key=lambda axis: new[axis] / old[axis])
