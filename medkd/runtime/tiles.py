"""Where the tiles of a sliding window lie and what each of their voxels counts; numbers only, for every engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import ceil

import numpy as np
from scipy.ndimage import gaussian_filter1d


@dataclass(frozen=True)
class Place:
    """One position of the patch along one axis.

    Attributes:
        voxels: the range that it covers.
        weights: what each voxel counts, already divided by the sum over all positions; None means 1.
    """

    voxels: slice
    weights: np.ndarray | None


def tile_starts(size: int, patch: int, step_size: float) -> list[int]:
    """First voxels of the tiles along one axis: evenly spread, at most ``step_size * patch`` apart, covering ``size``.

    The rule (number of steps, rounding half to even) is nnU-Net's (Isensee et al., Nature Methods 2021,
    doi:10.1038/s41592-020-01008-z), so that both predict from the same tiles.

    >>> tile_starts(100, 64, 0.5)
    [0, 18, 36]
    """
    steps = ceil((size - patch) / (patch * step_size)) + 1
    distance = (size - patch) / (steps - 1) if steps > 1 else 0.0
    return [round(distance * i) for i in range(steps)]


def gaussian_weight(patch: int) -> np.ndarray:
    """Importance of each voxel of a tile along one axis, ``(patch,)`` float64: a Gaussian with sigma = patch / 8 and
    maximum 1.

    The importance map of a tile is the product over the axes; a Gaussian-filtered delta is separable, so this equals
    nnU-Net's n-dimensional map (its scaling to a maximum of 10 cancels in the weighted mean). It is nowhere zero: the
    filter's radius of 4 sigma is half the patch.
    """
    delta = np.zeros(patch)
    delta[patch // 2] = 1.0
    weight = gaussian_filter1d(delta, patch / 8, mode="constant")
    return np.maximum(weight / weight.max(), np.finfo(np.float32).tiny)


def places(size: int, patch: int, step_size: float, blending: str) -> list[Place]:
    """The positions of the patch along one axis of ``size`` voxels; their weights sum to 1 at every voxel.

    Args:
        size: of the (padded) axis.
        patch: of the network along it, at most ``size``.
        step_size: distance of neighbouring tiles as a share of the patch.
        blending: ``gaussian``, or ``constant``: every voxel of a tile counts the same.
    """
    starts = tile_starts(size, patch, step_size)
    if len(starts) == 1:
        return [Place(slice(0, patch), None)]
    line = gaussian_weight(patch) if blending == "gaussian" else np.ones(patch)
    total = np.zeros(size)
    for start in starts:
        total[start : start + patch] += line
    found = []
    for start in starts:
        share = line / total[start : start + patch]
        found.append(Place(slice(start, start + patch), share.astype(np.float32)))
    return found


def tile_places(
    shape: Sequence[int], patch: Sequence[int], step_size: float, blending: str
) -> Iterator[tuple[int | None, tuple[Place, ...]]]:
    """All tiles of a padded volume.

    Args:
        shape: ``(z, y, x)``.
        patch: three values, or two for a 2D network that goes through the slices of the first axis.
        step_size: see :func:`places`.
        blending: see :func:`places`.

    Yields:
        The slice of the first axis (None in 3D), and a place per axis of the patch.
    """
    slices: Sequence[int | None] = range(shape[0]) if len(patch) < len(shape) else (None,)
    axes = []
    for size, side in zip(shape[-len(patch) :], patch, strict=True):
        axes.append(places(size, side, step_size, blending))
    corners = list(product(*axes))
    yield from product(slices, corners)


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All combinations of mirrored axes, the plain one first.

    >>> mirrorings((0, 1))
    [(), (0,), (1,), (0, 1)]
    """
    found: list[tuple[int, ...]] = []
    for count in range(len(axes) + 1):
        found += combinations(axes, count)
    return found


def padding(shape: Sequence[int], patch: Sequence[int]) -> list[tuple[int, int]]:
    """Voxels to add before and behind each axis so that the patch fits; the odd voxel goes behind."""
    wanted = (0,) * (len(shape) - len(patch)) + tuple(patch)
    found = []
    for size, side in zip(shape, wanted, strict=True):
        missing = max(0, side - size)
        found.append((missing // 2, missing - missing // 2))
    return found
