"""Outlines of masks along the edges of their pixels: polygons that hold exactly the mask's pixels and no others."""

from __future__ import annotations

import numpy as np

_STEPS = (
    (1, 0),
    (0, 1),
    (-1, 0),
    (0, -1),
)  # right, down, left, up as (column, row); the next one is a turn to the right
Corner = tuple[int, int]


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The closed outlines of a mask, outer ones and those of holes.

    A point lies in the mask where it lies within an odd number of them. Pixels that touch at a corner only have
    outlines of their own.

    Args:
        mask: ``(rows, columns)``, bool.

    Returns:
        Corners ``(n, 2)`` as (column, row), where the centre of the first pixel is (0, 0): values end in .5. Corners
        between collinear neighbours are left out.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return []
    top, left = int(rows[0]), int(columns[0])
    leaving = _edges(mask[top : rows[-1] + 1, left : columns[-1] + 1])
    found = []
    while leaving:
        start = next(iter(leaving))
        found.append(_walk(start, leaving) + (left, top))
    return found


def has_holes(polygons: list[np.ndarray]) -> bool:
    """Whether some outlines are those of holes: they run the other way round."""
    return any(signed_area(polygon) < 0 for polygon in polygons)


def signed_area(polygon: np.ndarray) -> float:
    """Area in pixels, negative for the outline of a hole."""
    x, y = polygon.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _edges(mask: np.ndarray) -> dict[Corner, list[int]]:
    """Corner → directions of the edges that leave it; the mask lies to the right of each."""
    padded = np.pad(np.asarray(mask, bool), 1)
    inside = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])  # above, right, below, left
    starts = ((0, 0), (1, 0), (1, 1), (0, 1))  # where the edge on that side begins, from the pixel's first corner
    leaving: dict[Corner, list[int]] = {}
    for direction, (other, (right, down)) in enumerate(zip(neighbours, starts, strict=True)):
        rows, columns = np.nonzero(inside & ~other)
        for column, row in zip((columns + right).tolist(), (rows + down).tolist(), strict=True):
            leaving.setdefault((column, row), []).append(direction)
    return leaving


def _walk(start: Corner, leaving: dict[Corner, list[int]]) -> np.ndarray:
    """Follow the edges from a corner until it is reached again; they are taken out of ``leaving``."""
    corners: list[Corner] = []
    corner, direction = start, _take(start, leaving, -1)
    first = direction
    while True:
        column, row = corner
        corner = (column + _STEPS[direction][0], row + _STEPS[direction][1])
        if corner == start and not _goes_on(corner, leaving, direction):
            break
        following = _take(corner, leaving, direction)
        if following != direction:
            corners.append(corner)
        direction = following
    if direction != first:
        corners.append(start)
    return np.array(corners, np.float64) - 0.5


def _goes_on(corner: Corner, leaving: dict[Corner, list[int]], direction: int) -> bool:
    """Whether the outline only touches its first corner and turns around the same pixel there."""
    return (direction + 1) % 4 in leaving.get(corner, ())


def _take(corner: Corner, leaving: dict[Corner, list[int]], direction: int) -> int:
    """The direction in which the outline goes on: to the right where two are free, around the same pixel."""
    choices = leaving[corner]
    turned = (direction + 1) % 4
    chosen = turned if direction >= 0 and turned in choices else choices[0]
    choices.remove(chosen)
    if not choices:
        del leaving[corner]
    return chosen
