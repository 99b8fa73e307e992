"""Distances between the surfaces of two masks, in mm.

A surface is the set of foreground voxels that have a background voxel among their face neighbours (6 in 3D, 4 in 2D);
everything outside the image counts as background. Distances run between voxel centres. This is the definition of
MONAI's and MedPy's surface metrics, so numbers can be compared with theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from medkd.core.errors import DataError


@dataclass(frozen=True)
class SurfaceDistances:
    """For each surface voxel of one mask, the distance in mm to the nearest surface voxel of the other.

    Attributes:
        to_reference: one distance per surface voxel of the prediction, in no particular order, float64.
        to_prediction: one distance per surface voxel of the reference, likewise.
    """

    to_reference: np.ndarray
    to_prediction: np.ndarray


def surface(mask: np.ndarray) -> np.ndarray:
    """Mark the surface voxels of a boolean mask; axes of length 1 have no neighbours (a slice is treated as 2D).

    Args:
        mask: bool, any rank.

    Returns:
        bool array of the same shape.
    """
    inside = mask.copy()
    for axis in (a for a in range(mask.ndim) if mask.shape[a] > 1):
        here, there = _slices(mask.ndim, axis)
        inside[here] &= mask[there]
        inside[there] &= mask[here]
        for edge in (0, -1):
            inside[(slice(None),) * axis + (edge,)] = False
    return mask & ~inside


def surface_distances(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances:
    """Distances between the surfaces of two masks, both ways.

    Nearest neighbours are found exactly, with one k-d tree per surface: its cost follows the surfaces' size and not the
    volume around them, so that a single stray voxel far away costs nothing (a distance transform of the joint box would
    cover all the space between). Voxels that both surfaces share have distance 0 and are not looked up.

    Args:
        prediction: bool mask, any rank, not empty.
        reference: bool mask of the same shape, not empty.
        spacing: voxel size in mm per axis.

    Raises:
        DataError: shapes differ, spacing does not fit them, or a mask is empty.
    """
    check_masks(prediction, reference, spacing)
    box = joint_box(prediction, reference)
    if box is None or not prediction.any() or not reference.any():
        raise DataError(
            "Surface distances need two masks that are not empty; decide first what an empty mask shall count."
        )
    # the margin keeps a structure of a single slice 3D: cut to length 1, the axis would look like that of a 2D image
    ours, theirs = surface(prediction[box]), surface(reference[box])
    scale = np.asarray(spacing, dtype=np.float64)
    shared = int(np.count_nonzero(ours & theirs))
    to_reference = _nearest(np.argwhere(ours & ~theirs) * scale, theirs, scale)
    to_prediction = _nearest(np.argwhere(theirs & ~ours) * scale, ours, scale)
    zeros = np.zeros(shared)
    return SurfaceDistances(np.concatenate([zeros, to_reference]), np.concatenate([zeros, to_prediction]))


def joint_box(first: np.ndarray, second: np.ndarray) -> tuple[slice, ...] | None:
    """Bounding box of the union of two masks with a margin of one voxel inside the image; None where both are empty."""
    union = first | second
    slices = []
    for axis in range(union.ndim):
        present = np.flatnonzero(union.any(axis=tuple(a for a in range(union.ndim) if a != axis)))
        if not present.size:
            return None
        slices.append(slice(max(int(present[0]) - 1, 0), int(present[-1]) + 2))
    return tuple(slices)


def check_masks(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float] | None = None) -> None:
    """Check that two masks are boolean, lie on one grid, and that the spacing fits it.

    Raises:
        DataError: they do not.
    """
    if prediction.dtype != np.bool_ or reference.dtype != np.bool_:
        raise DataError(
            f"Metrics need boolean masks, found {prediction.dtype} and {reference.dtype}; compare with a label value "
            "first."
        )
    if prediction.shape != reference.shape:
        raise DataError(
            f"The prediction has shape {prediction.shape}, the reference {reference.shape}; they must lie on the same "
            "grid."
        )
    if spacing is not None and (len(spacing) != prediction.ndim or not all(0 < s < float("inf") for s in spacing)):
        raise DataError(f"Expected {prediction.ndim} positive voxel sizes in mm, found {tuple(spacing)}.")


def _nearest(points: np.ndarray, target: np.ndarray, scale: np.ndarray) -> np.ndarray:
    if not len(points):
        return np.zeros(0)
    # building a balanced, compact tree costs more than it saves on surfaces of organs
    tree = cKDTree(np.argwhere(target) * scale, balanced_tree=False, compact_nodes=False)
    return tree.query(points)[0]


def _slices(rank: int, axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    before = (slice(None),) * axis
    after = (slice(None),) * (rank - axis - 1)
    return (*before, slice(None, -1), *after), (*before, slice(1, None), *after)
