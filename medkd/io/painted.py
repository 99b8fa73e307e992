"""Whether an image is a label map: a few whole numbers, each in areas of its own."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

MOST_SURE = 16
"""Of more values than these a scan may look like a label map."""

_CALM = 0.6  # of a label map's neighbours more than this share are equal; of a scan's, noise leaves fewer


def painted_values(array: np.ndarray, labels: Collection[int]) -> frozenset[int]:
    """The values of an image that looks like a label map, of all others nothing.

    Such a map holds nothing but label values and more than the background, and most neighbours that are not both
    background are equal, as scans with their noise are not, whatever their range. Looks at one slice at a time and
    stops at the first that cannot be one.
    """
    low, high = array.min(initial=0), array.max(initial=0)
    if not 0 <= low < high <= max(labels, default=0):  # also where one is no number
        return frozenset()
    allowed = np.zeros(int(high) + 1, bool)
    allowed[[label for label in labels if 0 <= label <= high]] = True
    present = np.zeros_like(allowed)
    equal = pairs = 0
    for part in array:
        whole = part.astype(np.intp)
        if (whole != part).any() or not allowed[whole].all():
            return frozenset()
        present |= np.bincount(whole.ravel(), minlength=len(present)).astype(bool)
        first, second = whole[..., 1:], whole[..., :-1]
        inside = (first > 0) | (second > 0)
        pairs += int(np.count_nonzero(inside))
        equal += int(np.count_nonzero(inside & (first == second)))
    return frozenset(map(int, np.flatnonzero(present))) if equal > _CALM * pairs else frozenset()
