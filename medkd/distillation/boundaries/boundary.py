"""Boundary bands of label maps."""

from __future__ import annotations

import torch
from torch import Tensor


def neighbours_inside(masks: Tensor, replicate: bool) -> Tensor:
    """How many of a voxel's neighbours (26 in 3D, 8 in 2D) lie in a mask.

    Args:
        masks: ``(M, *spatial)``, bool.
        replicate: what lies beyond the border is like the border voxel; otherwise it lies in no mask.

    Returns:
        ``(M, *spatial)``, uint8; the voxel itself is not counted.
    """
    counts = masks.to(torch.uint8)
    for axis in range(1, masks.ndim):
        first, last = counts.narrow(axis, 0, 1), counts.narrow(axis, -1, 1)
        inner = counts.shape[axis] - 1
        total = counts.clone()  # a box sum is separable: three neighbours along each axis in turn
        total.narrow(axis, 1, inner).add_(counts.narrow(axis, 0, inner))
        total.narrow(axis, 0, inner).add_(counts.narrow(axis, 1, inner))
        if replicate:
            total.narrow(axis, 0, 1).add_(first)
            total.narrow(axis, -1, 1).add_(last)
        counts = total
    return counts.sub_(masks.to(torch.uint8))


def boundary_band(masks: Tensor, replicate: bool = True) -> Tensor:
    """Voxels whose neighbours lie partly inside and partly outside a mask: a band about two voxels thick.

    Args:
        masks: ``(M, *spatial)``, bool.
        replicate: see :func:`neighbours_inside`; without it, a structure that the patch's border cuts has a band there
            too.

    Returns:
        ``(M, *spatial)``, bool.
    """
    counts = neighbours_inside(masks, replicate)
    return (counts > 0) & (counts < 3 ** (masks.ndim - 1) - 1)


def well_inside(valid: Tensor) -> Tensor:
    """Annotated voxels ``(B, *spatial)`` all of whose neighbours are annotated too, so that their band is certain."""
    return valid & (neighbours_inside(valid, True) == 3 ** (valid.ndim - 1) - 1)


def one_hot(index: Tensor, classes: Tensor) -> Tensor:
    """Masks ``(B, len(classes), *spatial)``, bool, of class indices ``(B, 1, *spatial)``."""
    return index == classes.view(1, -1, *(1,) * (index.ndim - 2))


def classes_of(index: Tensor, number: int, first: int = 0) -> Tensor:
    """The classes ``first … number − 1``, on the device of ``index``; nothing is copied from the host."""
    return torch.arange(first, number, device=index.device, dtype=index.dtype)


def occurring(index: Tensor, number: int) -> Tensor:
    """The classes that occur in ``index``; on other devices than the CPU all, since looking would wait for them."""
    return index.unique() if index.device.type == "cpu" else classes_of(index, number)
