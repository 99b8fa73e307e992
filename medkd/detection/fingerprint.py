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


@dataclass(frozen=True, kw_only=True)
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
        names = ("lowest", "p5", "p10", "median", "p75", "p95", "highest")
        percentiles = np.percentile(array if array.size else [0.0], (0, 5, 10, 50, 75, 95, 100))
        return cls(**{name: round(float(value), 6) for name, value in zip(names, percentiles, strict=True)})


@dataclass(frozen=True, kw_only=True)
class DetectionFingerprint:
    """Of all training cases.

    Attributes:
        source: hash of the raw files' names, sizes and times of change.
        positives: images with boxes.
        negatives: images without, but for those with nothing but crowds.
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
    boxes_per_image = Counter(len(annotation.names) for annotation in found)
    sets = Counter(_category_set(annotation, categories) for annotation in found if annotation.names)
    boxes, images = _counts(found, categories)
    longest = [max(annotation.width, annotation.height) for annotation in found]
    widths, heights, around = _box_sides(found, longest)
    sides = np.sqrt(widths * heights)
    return DetectionFingerprint(
        source=source,
        positives=len(found) - boxes_per_image[0],
        negatives=_negatives(found),
        boxes=boxes,
        images=images,
        category_sets=dict(sets.most_common()),
        boxes_per_image={str(number): count for number, count in sorted(boxes_per_image.items())},
        width=Spread.of(annotation.width for annotation in found),
        height=Spread.of(annotation.height for annotation in found),
        long_side=Spread.of(longest),
        box_side=Spread.of(sides),
        box_share=Spread.of(sides / around),
        box_short_share=Spread.of(np.minimum(widths, heights) / around),
        box_shape=Spread.of(widths / heights),
    )


def _negatives(found: Sequence[BoxAnnotation]) -> int:
    """Images in which nothing is."""
    return sum(not annotation.names and not annotation.ignored for annotation in found)


def _category_set(annotation: BoxAnnotation, categories: Sequence[str]) -> str:
    return JOIN.join(name for name in categories if name in annotation.names)


def _counts(found: Sequence[BoxAnnotation], categories: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Boxes, and images with a box, of each category."""
    boxes, images = dict.fromkeys(categories, 0), dict.fromkeys(categories, 0)
    for annotation in found:
        for name, number in Counter(annotation.names).items():
            boxes[name] += number
            images[name] += 1
    return boxes, images


def _box_sides(found: Sequence[BoxAnnotation], longest: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Widths and heights of all boxes in pixels, and the long sides of their images."""
    each = [_sides(annotation) for annotation in found]
    sides = np.concatenate(each) if each else np.zeros((0, 2))
    around = np.repeat(np.asarray(longest, np.float64), [len(boxes) for boxes in each])
    return sides[:, 0], sides[:, 1], around


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
