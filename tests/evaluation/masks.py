"""Random small masks for the metric tests."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def blob_pair(seed: int, shape: tuple[int, ...] = (9, 14, 13)) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping, ragged masks, neither empty; they reach the image's border."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    other = field + 0.4 * ndimage.gaussian_filter(rng.standard_normal(shape), 1.0)
    return field > np.quantile(field, 0.7), other > np.quantile(other, 0.72)


def slow_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]
) -> tuple[list[float], list[float]]:
    """Surface distances by the definition, with loops."""

    def surface(mask: np.ndarray) -> list[tuple[int, ...]]:
        found = []
        for index in zip(*np.nonzero(mask), strict=True):
            for axis in range(mask.ndim):
                for step in (-1, 1):
                    near = list(index)
                    near[axis] += step
                    outside = not 0 <= near[axis] < mask.shape[axis]
                    if outside or not mask[tuple(near)]:
                        found.append(tuple(int(i) for i in index))
        return sorted(set(found))

    def nearest(points: list[tuple[int, ...]], others: list[tuple[int, ...]]) -> list[float]:
        return [
            min(sum((s * (a - b)) ** 2 for s, a, b in zip(spacing, p, q, strict=True)) ** 0.5 for q in others)
            for p in points
        ]

    ours, theirs = surface(prediction), surface(reference)
    return nearest(ours, theirs), nearest(theirs, ours)
