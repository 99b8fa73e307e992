"""Structures that are mirror images of each other, which a network that is trained mirrored cannot tell apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from medkd.core.geometry import Geometry
from medkd.io.facts import CaseFacts
from medkd.io.orientation import axis_code, patient_axes

_VOLUME_RATIO = 1.6  # of the larger to the smaller of two structures
_SIZE_RATIO = 1.5  # of their boxes along each axis, beside a slack of three voxels
_SLACK = 3
_ALONG = 0.8  # share of the distance between them that lies along the mirrored axis
_OVERLAP = 0.75  # Dice of one with the mirrored other, centres laid onto each other
_SMALLEST = 20  # voxels; smaller structures are alike by chance
_SHARE = 0.6  # of the cases that show both structures, in which they must be mirror images, on the same sides


@dataclass(frozen=True)
class MirrorPair:
    """Two labels of one case that are mirror images.

    Attributes:
        first: the smaller label value.
        second: the larger one.
        axis: array axis (0 = z, 1 = y, 2 = x) across which they are mirrored.
        ascending: whether the first lies at the smaller index.
    """

    first: int
    second: int
    axis: int
    ascending: bool


def mirror_pairs(label: np.ndarray, counts: Mapping[int, int], spacing: Sequence[float]) -> tuple[MirrorPair, ...]:
    """The pairs of structures of a label map ``(z, y, x)`` that are mirror images of each other across one axis.

    Args:
        label: integers.
        counts: voxels per label value.
        spacing: voxel size in mm per array axis.
    """
    wanted = [value for value, count in counts.items() if value > 0 and count >= _SMALLEST]
    alike = [
        (a, b)
        for a, b in combinations(sorted(wanted), 2)
        if max(counts[a], counts[b]) <= _VOLUME_RATIO * min(counts[a], counts[b])
    ]
    if not alike:
        return ()
    from scipy import ndimage  # takes longer to load than a command's help may take

    boxes = ndimage.find_objects(label, max_label=max(value for pair in alike for value in pair))
    found = (_mirrored(label, boxes, a, b, np.asarray(spacing)) for a, b in alike)
    return tuple(pair for pair in found if pair is not None)


def common_pairs(cases: Iterable[tuple[Sequence[MirrorPair], Iterable[int]]]) -> list[MirrorPair]:
    """The pairs that hold in most of the cases that show both structures, on the same sides.

    Args:
        cases: of each case its pairs and the label values that it shows.
    """
    votes: Counter[MirrorPair] = Counter()
    shown: Counter[int | tuple[int, int]] = Counter()
    for pairs, values in cases:
        votes.update(pairs)
        shown.update(combinations(sorted(values), 2))
    return [pair for pair, count in votes.items() if count >= _SHARE * shown[pair.first, pair.second]]


def along_patient(pair: MirrorPair, geometry: Geometry) -> MirrorPair:
    """The same pair with its axis along the patient (0 = head-foot, 1 = front-back, 2 = left-right), ascending to the
    head, the front and the right.
    """
    letter = axis_code(geometry)[2 - pair.axis]
    ascending = pair.ascending == (letter in "SAR")
    return MirrorPair(pair.first, pair.second, patient_axes(geometry).index(pair.axis), ascending)


def network_axes(facts: Sequence[CaseFacts], orientation: str | None) -> tuple[int, ...]:
    """Axis of the network that runs along each axis of the patient (head-foot, front-back, left-right).

    Args:
        facts: what the cases look like.
        orientation: the axis code that scans are turned to; None takes the most frequent one.
    """
    code = orientation or Counter(case.orientation for case in facts).most_common(1)[0][0]
    spacing = np.median([case.spacing for case in facts], axis=0)
    stored = [2 - next(i for i, letter in enumerate(code) if letter in pair) for pair in ("IS", "PA", "LR")]
    by_array = {axis: float(spacing[i]) for i, axis in enumerate(stored)}
    coarsest = max(range(3), key=lambda axis: (by_array[axis], -axis))
    order = [coarsest, *(axis for axis in range(3) if axis != coarsest)]
    return tuple(order.index(axis) for axis in stored)


def _mirrored(
    label: np.ndarray, boxes: Sequence[tuple[slice, ...]], a: int, b: int, spacing: np.ndarray
) -> MirrorPair | None:
    box_a, box_b = boxes[a - 1], boxes[b - 1]
    size_a = np.array([part.stop - part.start for part in box_a])
    size_b = np.array([part.stop - part.start for part in box_b])
    larger, smaller = np.maximum(size_a, size_b), np.minimum(size_a, size_b)
    if (larger > np.maximum(smaller * _SIZE_RATIO, smaller + _SLACK)).any():
        return None
    centre_a = np.array([part.start + part.stop for part in box_a]) / 2
    centre_b = np.array([part.start + part.stop for part in box_b]) / 2
    apart = (centre_b - centre_a) * spacing
    axis = int(np.argmax(np.abs(apart)))
    distance = float(np.linalg.norm(apart))
    if distance == 0 or abs(apart[axis]) < _ALONG * distance:
        return None
    if abs(centre_b[axis] - centre_a[axis]) < smaller[axis] / 2:  # they lie inside each other, side by side they do not
        return None
    mask_a, mask_b = label[box_a] == a, np.flip(label[box_b] == b, axis)
    if _overlap(mask_a, mask_b) < _OVERLAP:
        return None
    return MirrorPair(a, b, axis, bool(apart[axis] > 0))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two masks whose boxes' centres are laid onto each other."""
    shape = np.maximum(a.shape, b.shape)
    together = np.zeros(shape, np.uint8)
    for mask in (a, b):
        start = (shape - mask.shape) // 2
        part = tuple(slice(first, first + size) for first, size in zip(start, mask.shape, strict=True))
        together[part] += mask
    return 2 * float((together == 2).sum()) / float(a.sum() + b.sum())
