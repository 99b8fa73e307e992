"""Cropping to the voxels that carry signal (nnU-Net's non-zero crop)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

OUTSIDE = -1  # label of voxels outside the non-zero mask, as in nnU-Net

Box = tuple[tuple[int, int], ...]


def nonzero_mask(image: np.ndarray) -> np.ndarray:
    """Where any channel of ``image`` ``(C, z, y, x)`` differs from zero: ``(z, y, x)`` bool, holes not filled."""
    mask = image[0] != 0
    for channel in image[1:]:
        np.logical_or(mask, channel != 0, out=mask)
    return mask


def bounding_box(mask: np.ndarray) -> Box:
    """``(start, stop)`` per axis of the smallest box that holds all true voxels; the whole grid where there are none."""
    spans = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        spans.append((int(used[0]), int(used[-1]) + 1) if used.size else (0, mask.shape[axis]))
    return tuple(spans)


def box_slices(box: Box) -> tuple[slice, ...]:
    """The box as an index for arrays ``(z, y, x)``."""
    return tuple(slice(start, stop) for start, stop in box)


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill the cavities that no face-connected path joins to the border; a full mask, the usual case in CT, costs nothing."""
    return mask if mask.all() else ndimage.binary_fill_holes(mask)
