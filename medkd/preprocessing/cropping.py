"""Cropping to the voxels that carry signal (nnU-Net's non-zero crop)."""

from __future__ import annotations

import re

import numpy as np
from scipy import ndimage

from medkd.core.errors import PlanError

OUTSIDE = -1  # label of voxels outside the non-zero mask, as in nnU-Net

Box = tuple[tuple[int, int], ...]

_ABOVE = re.compile(r"above\(\s*(-?\d+(?:\.\d+)?)\s*\)")


def nonzero_mask(image: np.ndarray) -> np.ndarray:
    """Where any channel of ``image`` ``(C, z, y, x)`` differs from zero: ``(z, y, x)`` bool, holes not filled."""
    mask = image[0] != 0
    for channel in image[1:]:
        np.logical_or(mask, channel != 0, out=mask)
    return mask


def crop_box(image: np.ndarray, mask: np.ndarray, rule: str) -> Box:
    """The part of a case that is kept.

    Args:
        image: ``(C, z, y, x)``.
        mask: ``(z, y, x)``, where the image is not zero.
        rule: see :class:`medkd.core.plan.Configuration`.

    Raises:
        PlanError: the rule is unknown.
    """
    above = _ABOVE.fullmatch(rule)
    if above:
        return bounding_box(np.any(image > np.float32(above[1]), axis=0))
    if rule == "none":
        return tuple((0, size) for size in mask.shape)
    if rule != "nonzero":
        raise PlanError(
            f"Unknown crop '{rule}' in the plan; known are nonzero, none and above(value), for example above(-175)."
        )
    return bounding_box(mask)


def bounding_box(mask: np.ndarray) -> Box:
    """``(start, stop)`` per axis of the smallest box that holds all true voxels; the whole grid where there are
    none.
    """
    spans = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        used = np.flatnonzero(mask.any(axis=others))
        if used.size:
            spans.append((int(used[0]), int(used[-1]) + 1))
        else:
            spans.append((0, mask.shape[axis]))
    return tuple(spans)


def box_slices(box: Box) -> tuple[slice, ...]:
    """The box as an index for arrays ``(z, y, x)``."""
    return tuple(slice(start, stop) for start, stop in box)


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill the cavities that no face-connected path joins to the border; a full mask, the usual case in CT, costs
    nothing.
    """
    return mask if mask.all() else ndimage.binary_fill_holes(mask)
