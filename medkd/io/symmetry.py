"""Structures that are mirror images of each other, which a network that is trained mirrored cannot tell apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mode

import numpy as np

from medkd.core.geometry import Geometry
from medkd.io.facts import CaseFacts
from medkd.io.orientation import array_axes, axis_code, patient_axes

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
    alike = _alike_in_volume(counts)
    if not alike:
        return ()
    from scipy import ndimage  # takes longer to load than a command's help may take

    largest_value = max(second for _, second in alike)
    boxes = ndimage.find_objects(label, max_label=largest_value)
    found = []
    for first, second in alike:
        pair = _mirrored(label, boxes, first, second, np.asarray(spacing))
        if pair is not None:
            found.append(pair)
    return tuple(found)


def _alike_in_volume(counts: Mapping[int, int]) -> list[tuple[int, int]]:
    """Pairs of label values, the smaller one first, that have about as many voxels."""
    wanted = []
    for value, count in sorted(counts.items()):
        if value > 0 and count >= _SMALLEST:
            wanted.append(value)
    alike = []
    for first, second in combinations(wanted, 2):
        fewer, more = sorted((counts[first], counts[second]))
        if more <= _VOLUME_RATIO * fewer:
            alike.append((first, second))
    return alike


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
    common = []
    for pair, count in votes.items():
        if count >= _SHARE * shown[pair.first, pair.second]:
            common.append(pair)
    return common


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
    code = orientation or mode(case.orientation for case in facts)
    stored = array_axes(code)
    median = np.median([case.spacing for case in facts], axis=0)
    spacing = np.empty(3)
    spacing[list(stored)] = median
    coarsest = int(np.argmax(spacing))  # the first of equal ones
    order = [0, 1, 2]
    order.remove(coarsest)
    order.insert(0, coarsest)
    return tuple(order.index(axis) for axis in stored)


def _mirrored(
    label: np.ndarray, boxes: Sequence[tuple[slice, ...]], first: int, second: int, spacing: np.ndarray
) -> MirrorPair | None:
    """The pair that two structures are, if they are mirror images; ``boxes`` are all structures' bounding boxes."""
    box, other_box = boxes[first - 1], boxes[second - 1]
    size, centre = _size_and_centre(box)
    other_size, other_centre = _size_and_centre(other_box)
    larger, smaller = np.maximum(size, other_size), np.minimum(size, other_size)
    if (larger > np.maximum(smaller * _SIZE_RATIO, smaller + _SLACK)).any():
        return None
    voxels_apart = other_centre - centre
    apart = voxels_apart * spacing
    axis = int(np.argmax(np.abs(apart)))
    distance = float(np.linalg.norm(apart))
    if distance == 0 or abs(apart[axis]) < _ALONG * distance:
        return None
    if abs(voxels_apart[axis]) < smaller[axis] / 2:  # they lie inside each other, side by side they do not
        return None
    mask, other_mask = label[box] == first, label[other_box] == second
    if _overlap(mask, np.flip(other_mask, axis)) < _OVERLAP:
        return None
    return MirrorPair(first, second, axis, bool(apart[axis] > 0))


def _size_and_centre(box: tuple[slice, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Voxels per axis of a bounding box, and where its middle lies."""
    start, stop = np.array([(part.start, part.stop) for part in box]).T
    return stop - start, (start + stop) / 2


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two masks whose boxes' centres are laid onto each other."""
    shape = np.maximum(a.shape, b.shape)
    together = np.zeros(shape, np.uint8)
    for mask in (a, b):
        start = (shape - mask.shape) // 2
        together[tuple(map(slice, start, start + mask.shape))] += mask
    return 2 * float((together == 2).sum()) / float(a.sum() + b.sum())
