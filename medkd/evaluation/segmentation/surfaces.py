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
    for axis, length in enumerate(mask.shape):
        if length > 1:
            _erode_along(inside, mask, axis)
    return mask & ~inside


def _erode_along(inside: np.ndarray, mask: np.ndarray, axis: int) -> None:
    """Take from ``inside`` the voxels that have a neighbour along an axis outside of ``mask``, in place."""
    inner, whole = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)
    inner[:-1] &= whole[1:]
    inner[1:] &= whole[:-1]
    inner[0] = False
    inner[-1] = False


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
    shared = np.zeros(int(np.count_nonzero(ours & theirs)))
    to_reference = _nearest(ours & ~theirs, theirs, scale)
    to_prediction = _nearest(theirs & ~ours, ours, scale)
    return SurfaceDistances(
        to_reference=np.concatenate([shared, to_reference]),
        to_prediction=np.concatenate([shared, to_prediction]),
    )


def joint_box(first: np.ndarray, second: np.ndarray) -> tuple[slice, ...] | None:
    """Bounding box of the union of two masks with a margin of one voxel inside the image; None where both are empty."""
    union = first | second
    slices = []
    for axis in range(union.ndim):
        others = set(range(union.ndim)) - {axis}
        present = np.flatnonzero(union.any(axis=tuple(others)))
        if not present.size:
            return None
        start, stop = int(present[0]) - 1, int(present[-1]) + 2
        slices.append(slice(max(start, 0), stop))
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
    if spacing is None:
        return
    sizes = [size for size in spacing if 0 < size < float("inf")]
    if len(spacing) != prediction.ndim or len(sizes) != prediction.ndim:
        raise DataError(f"Expected {prediction.ndim} positive voxel sizes in mm, found {tuple(spacing)}.")


def _nearest(chosen: np.ndarray, target: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Distance in mm from each voxel of one mask to the nearest one of another."""
    if not chosen.any():
        return np.zeros(0)
    # building a balanced, compact tree costs more than it saves on surfaces of organs
    tree = cKDTree(np.argwhere(target) * scale, balanced_tree=False, compact_nodes=False)
    distances, _ = tree.query(np.argwhere(chosen) * scale)
    return distances
