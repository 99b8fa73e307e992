"""Which detection found which reference box: COCO's rule for average precision, and FROC's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medkd.evaluation.detection.predictions import Boxes

Criterion = Literal["iou", "centre"]
THRESHOLDS = np.linspace(0.5, 0.95, 10)
MOST = 100

TRUE, FALSE, REPEATED = 1, 0, -1


@dataclass(frozen=True, eq=False)
class Matched:
    """The detections of one class (or of all classes together) in all images, by falling score, ready to be counted.

    Attributes:
        scores: ``(n,)``.
        image: ``(n,)`` int64, place of the detection's image.
        hit: ``(n, T)`` int8 per threshold: 1 found a reference box, 0 did not, −1 neither (it lies in a crowd; for
            FROC also a box that was found already).
        truths: ``(images,)`` int64, reference boxes per image.
        crowded: ``(images,)`` bool, whether there are boxes to be ignored in an image.
    """

    scores: np.ndarray
    image: np.ndarray
    hit: np.ndarray
    truths: np.ndarray
    crowded: np.ndarray


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union ``(n, m)`` of boxes ``(n, 4)`` and ``(m, 4)``; 0 where both have no area."""
    ours, theirs = first[:, None], second[None]
    ends = np.minimum(ours[..., 2:], theirs[..., 2:])
    starts = np.maximum(ours[..., :2], theirs[..., :2])
    common = np.clip(ends - starts, 0, None).prod(axis=-1)
    union = areas(first)[:, None] + areas(second)[None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def areas(boxes: np.ndarray) -> np.ndarray:
    """Areas ``(n,)`` of boxes ``(n, 4)``."""
    left, top, right, bottom = boxes.T
    return (right - left) * (bottom - top)


def match_coco(found: Sequence[Boxes], truths: Sequence[Boxes], category: int, *, most: int = MOST) -> Matched:
    """COCO's greedy assignment within one class at ten IoU thresholds (0.5, 0.55, …, 0.95).

    By falling score, a detection takes the free reference box with the highest IoU, if that reaches the threshold (Lin
    et al., ECCV 2014, arXiv:1405.0312; pycocotools breaks ties in favour of the later box, and so does this). Every
    further detection of a box counts as false.

    Args:
        found: detections per image.
        truths: reference boxes per image.
        category: the class.
        most: detections of the class per image that count.
    """
    return _collect(_of_all(found, category, most), _of_all(truths, category), _coco_image)


def match_froc(
    found: Sequence[Boxes],
    truths: Sequence[Boxes],
    category: int | None,
    *,
    threshold: float = 0.5,
    criterion: Criterion = "iou",
    most: int = MOST,
) -> Matched:
    """Hits for FROC: like COCO's, but a further detection of a box that was found already is neither true nor false.

    As for the reader, who marks a finding once (Bandos et al., Biometrics 65, 2009,
    doi:10.1111/j.1541-0420.2008.01049.x; LUNA16).

    Args:
        found: detections per image.
        truths: reference boxes per image.
        category: the class, or None for all classes together, where a detection must still name the box's class.
        threshold: of the IoU.
        criterion: ``iou``, or ``centre``: the detection's centre lies in the box.
        most: detections per image that count.
    """

    def one(boxes: Boxes, drawn: Boxes) -> np.ndarray:
        return _froc_image(boxes, drawn, threshold, criterion)

    return _collect(_of_all(found, category, most), _of_all(truths, category), one)


def _of_all(images: Sequence[Boxes], category: int | None, most: int | None = None) -> list[Boxes]:
    return [_of(boxes, category, most) for boxes in images]


def _of(boxes: Boxes, category: int | None, most: int | None = None) -> Boxes:
    """The boxes of a class, highest score first, at most ``most``."""
    chosen = boxes if category is None else boxes.of_class(category)
    return chosen.only(np.argsort(-chosen.scores, kind="stable")[:most])


def _collect(found: Sequence[Boxes], truths: Sequence[Boxes], match: Callable[[Boxes, Boxes], np.ndarray]) -> Matched:
    scores, images = [np.zeros(0)], [np.zeros(0, np.int64)]
    hits = []
    for number, (boxes, drawn) in enumerate(zip(found, truths, strict=True)):
        hits.append(match(boxes, drawn))
        scores.append(boxes.scores)
        images.append(np.full(len(boxes), number))
    score, image = np.concatenate(scores), np.concatenate(images)
    hit = np.concatenate(hits) if hits else np.zeros((0, len(THRESHOLDS)), np.int8)
    order = np.argsort(-score, kind="stable")
    counts = np.array([len(drawn) for drawn in truths], np.int64)
    crowded = np.array([drawn.ignored is not None and len(drawn.ignored) > 0 for drawn in truths], bool)
    return Matched(score[order], image[order], hit[order], counts, crowded)


def _coco_image(found: Boxes, truths: Boxes) -> np.ndarray:
    hit = _coco_hits(found, truths)
    inside = _share_in_crowds(found, truths)[:, None] >= THRESHOLDS
    hit[(hit == FALSE) & inside] = REPEATED
    return hit


def _share_in_crowds(found: Boxes, truths: Boxes) -> np.ndarray:
    """The largest share of each detection's area that lies in a crowd of its class, ``(n,)``; COCO takes it for the
    overlap.
    """
    if truths.ignored is None or not len(truths.ignored) or not len(found):
        return np.zeros(len(found))
    ours, theirs = found.boxes[:, None], truths.ignored.boxes[None]
    sides = np.minimum(ours[..., 2:], theirs[..., 2:]) - np.maximum(ours[..., :2], theirs[..., :2])
    common = np.clip(sides, 0, None).prod(axis=-1)
    own = areas(found.boxes)[:, None]
    shares = np.divide(common, own, out=np.zeros_like(common), where=own > 0)
    return np.asarray((shares * _same_class(found, truths.ignored)).max(axis=1))


def _same_class(found: Boxes, drawn: Boxes) -> np.ndarray:
    """``(n, m)`` bool."""
    return np.asarray(found.classes[:, None] == drawn.classes[None])


def _coco_hits(found: Boxes, truths: Boxes) -> np.ndarray:
    hit = np.zeros((len(found), len(THRESHOLDS)), np.int8)
    if not len(truths) or not len(found):
        return hit
    iou = overlaps(found.boxes, truths.boxes)[:, ::-1]  # reversed, so that argmax takes the later of two equals
    free = np.ones((len(THRESHOLDS), len(truths)), bool)
    rows = np.arange(len(THRESHOLDS))
    for i in np.flatnonzero(iou.max(axis=1) >= THRESHOLDS[0]):
        candidates = np.where(free, iou[i], -1.0)
        best = candidates.argmax(axis=1)
        good = candidates[rows, best] >= THRESHOLDS
        hit[i] = good
        free[rows[good], best[good]] = False
    return hit


def _froc_image(found: Boxes, truths: Boxes, threshold: float, criterion: Criterion) -> np.ndarray:
    hit = _froc_hits(found, truths, threshold, criterion)
    inside = _share_in_crowds(found, truths) >= threshold
    if criterion == "centre" and truths.ignored is not None:
        inside = (_centres_inside(found.boxes, truths.ignored.boxes) & _same_class(found, truths.ignored)).any(axis=1)
    hit[(hit == FALSE) & inside[:, None]] = REPEATED
    return hit


def _froc_hits(found: Boxes, truths: Boxes, threshold: float, criterion: Criterion) -> np.ndarray:
    hit = np.zeros((len(found), 1), np.int8)
    if not len(truths) or not len(found):
        return hit
    iou = overlaps(found.boxes, truths.boxes)
    if criterion == "iou":
        touches = iou >= threshold
    else:
        touches = _centres_inside(found.boxes, truths.boxes)
    touches &= _same_class(found, truths)
    free = np.ones(len(truths), bool)
    for i in np.flatnonzero(touches.any(axis=1)):
        candidates = touches[i] & free
        hit[i] = TRUE if candidates.any() else REPEATED
        if candidates.any():
            best = np.where(candidates, iou[i], -1.0).argmax()
            free[best] = False
    return hit


def _centres_inside(found: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Whether the centre of each of ``(n, 4)`` lies in each of ``(m, 4)``, borders included: ``(n, m)``."""
    centre = (found[:, None, :2] + found[:, None, 2:]) / 2
    after_start = centre >= truths[None, :, :2]
    before_end = centre <= truths[None, :, 2:]
    return (after_start & before_end).all(axis=-1)
