"""Random boxes, slow and obvious scores of them, and folders of detections, for the tests of detection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medkd.core.boxes import BoxAnnotation
from medkd.evaluation.detection.predictions import Boxes, DetectionPredictions, ImagePredictions

SIDE = 300
Pair = tuple[list[Boxes], list[Boxes]]


def random_boxes(rng: np.random.Generator, count: int, *, coarse: bool = False) -> np.ndarray:
    """Boxes in an image of 300² pixels; coarse ones lie on a grid, so that many overlaps are equal."""
    corner, sides = rng.uniform(0, 200, (count, 2)), rng.uniform(8, 90, (count, 2))
    boxes = np.concatenate([corner, corner + sides], axis=1)
    if coarse:
        boxes = boxes.round(-1)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 10)
    return boxes


def random_pair(
    seed: int, images: int = 8, classes: int = 2, *, coarse: bool = False, noise: float = 4.0, others: int = 6
) -> Pair:
    """Detections and truths: most boxes are found somewhere near, some with the wrong class, among others that are not
    there.
    """
    rng = np.random.default_rng(seed)
    found, truths = [], []
    for _ in range(images):
        drawn = random_boxes(rng, rng.integers(0, 4), coarse=coarse)
        kinds = rng.integers(0, classes, len(drawn))
        near = drawn + (0 if coarse else rng.normal(0, noise, drawn.shape))
        boxes = np.concatenate([near, random_boxes(rng, rng.integers(0, others + 1), coarse=coarse)])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        kept = np.where(rng.random(len(drawn)) < 0.8, kinds, rng.integers(0, classes, len(drawn)))
        guessed = np.concatenate([kept, rng.integers(0, classes, len(boxes) - len(drawn))])
        scores = np.concatenate([rng.beta(4, 2, len(drawn)), rng.beta(2, 4, len(boxes) - len(drawn))])
        found.append(Boxes.of(boxes, guessed, scores.round(1) if coarse else scores))
        truths.append(Boxes.of(drawn, kinds))
    return found, truths


def slow_overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = wide * high if wide > 0 and high > 0 else 0.0
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def slow_average_precision(found: Sequence[Boxes], truths: Sequence[Boxes], category: int, threshold: float) -> float:
    """One detection after the other, and at each of 101 recalls the best precision there or beyond."""
    total = sum(int((t.classes == category).sum()) for t in truths)
    listed = sorted(
        ((f.scores[i], image, i) for image, f in enumerate(found) for i in np.flatnonzero(f.classes == category)),
        key=lambda entry: -entry[0],
    )
    taken: set[tuple[int, int]] = set()
    points, true = [], 0
    for rank, (_, image, i) in enumerate(listed, start=1):
        best, place = threshold, None
        for j in np.flatnonzero(truths[image].classes == category):
            iou = slow_overlap(found[image].boxes[i], truths[image].boxes[j])
            if (image, j) not in taken and iou >= best:
                best, place = iou, j
        if place is not None:
            taken.add((image, place))
            true += 1
        points.append((true / total, true / rank))
    reached = [max((p for r, p in points if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]
    return float(np.mean(reached))


def slow_sensitivity(
    found: Sequence[Boxes], truths: Sequence[Boxes], rate: float, threshold: float, *, centre: bool = False
) -> float:
    """Try every score as the threshold above which detections count."""
    total, best = sum(map(len, truths)), 0.0
    for cut in sorted({float(s) for f in found for s in f.scores}):
        true = false = 0
        for f, t in zip(found, truths, strict=True):
            hit: set[int] = set()
            for i in np.argsort(-f.scores, kind="stable"):
                if f.scores[i] < cut:
                    continue
                same = [
                    j
                    for j in range(len(t))
                    if t.classes[j] == f.classes[i] and _touches(f.boxes[i], t.boxes[j], threshold, centre)
                ]
                free = [j for j in same if j not in hit]
                if free:
                    hit.add(max(free, key=lambda j: slow_overlap(f.boxes[i], t.boxes[j])))
                elif not same:
                    false += 1
            true += len(hit)
        if false <= rate * len(found):
            best = max(best, true / total)
    return best


def _touches(box: np.ndarray, truth: np.ndarray, threshold: float, centre: bool) -> bool:
    if not centre:
        return slow_overlap(box, truth) >= threshold
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return bool(truth[0] <= x <= truth[2] and truth[1] <= y <= truth[3])


def write_pair(folder: Path, pair: Pair, categories: tuple[str, ...]) -> tuple[Path, Path]:
    """``folder/pred/predictions.json`` and ``folder/ref/CASE.json``."""
    images = {}
    for number, (found, truth) in enumerate(zip(*pair, strict=True)):
        case, names = f"image_{number:02d}", tuple(categories[k] for k in truth.classes)
        images[case] = ImagePredictions(f"{case}.png", SIDE, SIDE, found)
        BoxAnnotation(width=SIDE, height=SIDE, boxes=tuple(map(tuple, truth.boxes.tolist())), names=names).save(
            folder / "ref" / f"{case}.json"
        )
    DetectionPredictions(categories, images).save(folder / "pred")
    return folder / "pred", folder / "ref"
