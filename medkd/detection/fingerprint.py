"""What a detection data set looks like: sizes of images and boxes, and how often each class occurs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkd.core.boxes import BoxAnnotation
from medkd.core.errors import DataError
from medkd.core.serial import load
from medkd.detection.sampling import JOIN

FINGERPRINT_FILE = "fingerprint.json"


@dataclass(frozen=True)
class Spread:
    """Percentiles of a quantity; all 0 where it never occurs."""

    lowest: float
    p5: float
    p10: float
    median: float
    p75: float
    p95: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Percentiles of some values."""
        array = np.fromiter(values, np.float64)
        return cls(
            *(round(float(v), 6) for v in np.percentile(array if array.size else [0.0], (0, 5, 10, 50, 75, 95, 100)))
        )


@dataclass(frozen=True)
class DetectionFingerprint:
    """Of all training cases.

    Attributes:
        source: hash of the raw files' names, sizes and times of change.
        positives: images with boxes.
        negatives: images without.
        boxes: of each category.
        images: with a box of each category.
        category_sets: images whose boxes have exactly these categories, joined by ``+`` in the order of
            ``dataset.json``.
        boxes_per_image: number of boxes → images.
        width: of the images in pixels.
        height: likewise.
        long_side: the larger of both.
        box_side: square root of the area of a box, in pixels.
        box_share: the same as a share of the image's long side.
        box_short_share: the shorter side of a box as a share of the image's long side.
        box_shape: width / height of a box.
    """

    source: str
    positives: int
    negatives: int
    boxes: Mapping[str, int]
    images: Mapping[str, int]
    category_sets: Mapping[str, int]
    boxes_per_image: Mapping[str, int]
    width: Spread
    height: Spread
    long_side: Spread
    box_side: Spread
    box_share: Spread
    box_short_share: Spread
    box_shape: Spread
    schema: int = 1


def make_fingerprint(
    annotations: Mapping[str, BoxAnnotation], categories: Sequence[str], source: str
) -> DetectionFingerprint:
    """The fingerprint of some cases.

    Args:
        annotations: case → its boxes.
        categories: of the data set, in order.
        source: see :class:`DetectionFingerprint`.
    """
    found = [annotation for _, annotation in sorted(annotations.items())]
    sides = [_sides(annotation) for annotation in found]
    longest = [max(a.width, a.height) for a in found]
    pairs = [(float(w), float(h), side) for boxes, side in zip(sides, longest, strict=True) for w, h in boxes]
    sets = Counter(JOIN.join(c for c in categories if c in a.names) for a in found if a.names)
    return DetectionFingerprint(
        source,
        sum(bool(a.names) for a in found),
        sum(not a.names for a in found),
        {c: sum(a.names.count(c) for a in found) for c in categories},
        {c: sum(c in a.names for a in found) for c in categories},
        dict(sets.most_common()),
        {str(number): count for number, count in sorted(Counter(len(a.names) for a in found).items())},
        Spread.of(a.width for a in found),
        Spread.of(a.height for a in found),
        Spread.of(longest),
        Spread.of((w * h) ** 0.5 for w, h, _ in pairs),
        Spread.of((w * h) ** 0.5 / side for w, h, side in pairs),
        Spread.of(min(w, h) / side for w, h, side in pairs),
        Spread.of(w / h for w, h, _ in pairs),
    )


def source_of_files(sources: Mapping[str, str]) -> str:
    """One hash of what :func:`~medkd.detection.store.source_of_case` says of all cases."""
    digest = hashlib.blake2b(digest_size=16)
    for case, source in sorted(sources.items()):
        digest.update(f"{case}|{source}\n".encode())
    return digest.hexdigest()


def known_fingerprint(path: Path, source: str) -> bool:
    """Whether a file holds the fingerprint of these very files."""
    try:
        return path.exists() and load(DetectionFingerprint, path).source == source
    except DataError:  # of another version, or damaged: it costs only time to make it anew
        return False


def _sides(annotation: BoxAnnotation) -> np.ndarray:
    """Width and height of the boxes that have an area, ``(n, 2)`` in pixels."""
    boxes = annotation.array().astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    return sides[(sides > 0).all(1)]
