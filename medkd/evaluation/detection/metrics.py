"""Average precision, FROC sensitivity and the image-level AUC, counted for many weightings of the images at once.

A weighting says how often each image counts: ones for the scores themselves, and one row per sample for a bootstrap,
which so costs cumulative sums instead of thousands of evaluations. Counting an image twice is the same as listing it
twice, but for the order of equal scores, on which COCO's precision depends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from medkd.evaluation.detection.matching import (
    FALSE,
    REPEATED,
    THRESHOLDS,
    TRUE,
    Criterion,
    Matched,
    match_coco,
    match_froc,
)
from medkd.evaluation.detection.predictions import Boxes

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per image at which sensitivity is read."""

RECALLS = np.linspace(0, 1, 101)
_CHUNK = 4_000_000  # numbers per intermediate table

Key = tuple[str, str]
"""(class or empty, metric)."""

Values = dict[Key, np.ndarray]


@dataclass(frozen=True, eq=False, kw_only=True)
class Matches:
    """A set of detections compared with the reference boxes of the same images, once and for all.

    Attributes:
        categories: names of the classes.
        excluded: classes that a second mean and the FROC of all classes leave out.
        coco: per class, at ten thresholds.
        froc: per class; the last one is all classes together, without the excluded ones.
        scores: ``(images, classes + 1)`` highest score in each image per class, the last one of all but the excluded
            classes.
        truths: the reference boxes of each image.
    """

    categories: tuple[str, ...]
    excluded: tuple[str, ...]
    coco: tuple[Matched, ...]
    froc: tuple[Matched, ...]
    scores: np.ndarray
    truths: tuple[Boxes, ...]

    @property
    def number(self) -> int:
        """How many images."""
        return len(self.scores)


def compare_boxes(
    found: Sequence[Boxes],
    truths: Sequence[Boxes],
    categories: Sequence[str],
    *,
    excluded: Sequence[str] = (),
    threshold: float = 0.5,
    criterion: Criterion = "iou",
) -> Matches:
    """Match the detections of every image; see :mod:`medkd.evaluation.detection.matching` for the rules.

    Args:
        found: per image.
        truths: per image, in the same order.
        categories: names of the classes.
        excluded: classes to leave out of the second mean and of FROC over all classes.
        threshold: IoU of a hit for FROC.
        criterion: what a hit is for FROC.
    """
    coco, froc = [], []
    for k in range(len(categories)):
        coco.append(match_coco(found, truths, k))
        froc.append(match_froc(found, truths, k, threshold=threshold, criterion=criterion))
    kept = np.array([name not in excluded for name in categories], bool)
    places = np.where(kept, np.arange(len(kept)), -1)
    rest_found = [boxes.renamed(places) for boxes in found]
    rest_truths = [boxes.renamed(places) for boxes in truths]
    froc.append(match_froc(rest_found, rest_truths, None, threshold=threshold, criterion=criterion))
    return Matches(
        categories=tuple(categories),
        excluded=tuple(name for name in categories if name in excluded),
        coco=tuple(coco),
        froc=tuple(froc),
        scores=_highest_scores(found, kept),
        truths=tuple(truths),
    )


def _highest_scores(found: Sequence[Boxes], kept: np.ndarray) -> np.ndarray:
    """``(images, classes + 1)`` highest score in each image per class, the last one of all kept classes."""
    scores = np.zeros((len(found), len(kept) + 1))
    for row, boxes in zip(scores, found, strict=True):
        for k in range(len(kept)):
            row[k] = _top(boxes, boxes.classes == k)
        row[-1] = _top(boxes, kept[boxes.classes])
    return scores


def measure(matches: Matches, weights: np.ndarray) -> Values:
    """Every metric under every weighting.

    ``AP``, ``AP50``, ``AP75`` are means over the classes that have a reference box; ``AP without …`` leaves the
    excluded classes out. ``S@R`` is the sensitivity at R false positives per image, ``AUC`` that of the highest score
    per image for images with a box against those without; those with crowds alone have no part in it. NaN where a
    metric is not defined.

    Args:
        matches: what is counted.
        weights: ``(samples, images)``, how often each image counts.

    Returns:
        (class or empty, metric) → ``(samples,)``.
    """
    values: Values = {}
    for name, matched in zip(matches.categories, matches.coco, strict=True):
        table = _in_chunks(average_precisions, matched, weights)
        values[name, "AP"] = table.mean(axis=1)
        values[name, "AP50"] = table[:, 0]
        values[name, "AP75"] = table[:, 5]
    for metric in ("AP", "AP50", "AP75"):
        values["", metric] = _mean_over(values, metric, matches.categories, len(weights))
    if matches.excluded:
        rest = [name for name in matches.categories if name not in matches.excluded]
        values["", rest_key(matches.excluded)] = _mean_over(values, "AP", rest, len(weights))
    for place, name in enumerate((*matches.categories, "")):
        matched = matches.froc[place]
        found = _in_chunks(sensitivities, matched, weights)
        for column, rate in enumerate(RATES):
            values[name, rate_key(rate)] = found[:, column]
        judged = (matched.truths > 0) | ~matched.crowded  # a crowd alone is neither a box nor its absence
        with_box, scores = matched.truths[judged] > 0, matches.scores[judged, place]
        values[name, "AUC"] = _in_chunks_of_images(scores, with_box, weights[:, judged])
    return values


def rate_key(rate: float) -> str:
    """``S@0.125``, ``S@1``: sensitivity at a number of false positives per image."""
    return f"S@{rate:g}"


def rest_key(excluded: Sequence[str]) -> str:
    """``AP without text``."""
    return f"AP without {', '.join(excluded)}"


def average_precisions(matched: Matched, weights: np.ndarray) -> np.ndarray:
    """Average precision ``(samples, 10)`` of a class at COCO's ten thresholds, interpolated at 101 recalls.

    Only the places of true positives matter, since the precision that counts at a recall is the highest one there or
    beyond.

    Args:
        matched: from :func:`~medkd.evaluation.detection.matching.match_coco`.
        weights: ``(samples, images)``.
    """
    total = (weights @ matched.truths).astype(np.float64)[:, None]
    places = np.flatnonzero((matched.hit == TRUE).any(axis=1))
    every = np.ones(len(matched.scores), bool)
    listed = _counted_until(places, every, matched, weights)
    drawn = weights[:, matched.image[places]].astype(np.float64)
    result = np.zeros((len(weights), len(THRESHOLDS)))
    for t in range(len(THRESHOLDS)):
        here = np.flatnonzero(matched.hit[places, t] == TRUE)
        if not len(here):
            continue
        true = np.cumsum(drawn[:, here], axis=1)
        counted = listed
        if (matched.hit[:, t] == REPEATED).any():  # in a crowd: neither true nor false
            counted = _counted_until(places, matched.hit[:, t] != REPEATED, matched, weights)
        precision = true / np.maximum(counted[:, here], 1)
        recall = true / np.maximum(total, 1)
        result[:, t] = _area_under(precision, recall)
    return np.where(total > 0, result, np.nan)


def _area_under(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Mean over 101 recalls ``(samples,)`` of the highest precision there or beyond; both ``(samples, places)``."""
    backwards = np.maximum.accumulate(precision[:, ::-1], axis=1)
    highest = backwards[:, ::-1]
    reached = np.searchsorted(RECALLS, recall, side="right")
    steps = np.diff(reached, axis=1, prepend=0)
    return (highest * steps).sum(axis=1) / len(RECALLS)


def sensitivities(matched: Matched, weights: np.ndarray, rates: Sequence[float] = RATES) -> np.ndarray:
    """Sensitivity ``(samples, rates)``: the highest share of the reference boxes found with at most ``rate`` false
    positives per image.

    Args:
        matched: from :func:`~medkd.evaluation.detection.matching.match_froc`.
        weights: ``(samples, images)``.
        rates: false positives per image.
    """
    total = (weights @ matched.truths).astype(np.float64)
    images = weights.sum(axis=1)[:, None]
    true, false = _operating_points(matched, weights)
    result = np.zeros((len(weights), len(rates)))
    for column, rate in enumerate(rates):
        within = false <= rate * images + 1e-9
        last = within.sum(axis=1) - 1
        found = np.take_along_axis(true, np.maximum(last, 0)[:, None], axis=1)[:, 0]
        found = np.where(last >= 0, found, 0)
        result[:, column] = found / np.maximum(total, 1)
    return np.where(total[:, None] > 0, result, np.nan)


def froc_curve(matched: Matched) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The whole curve: false positives per image, sensitivity, and the score that gives them; empty without reference
    boxes.
    """
    images, total = len(matched.truths), matched.truths.sum()
    if not total:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    true, false = _operating_points(matched, np.ones((1, images), np.int32))
    scores = np.append(np.inf, matched.scores[_points(matched)])
    return false[0] / images, true[0] / total, scores


def image_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve ``(samples,)`` of image scores; equal scores count half (Mann and Whitney); NaN without
    both kinds.

    Args:
        scores: ``(images,)``.
        positive: ``(images,)`` bool.
        weights: ``(samples, images)``.
    """
    if not len(scores):
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    drawn = weights[:, order].astype(np.float64)
    kind = positive[order]
    with_box = np.add.reduceat(drawn * kind, starts, axis=1)
    without = np.add.reduceat(drawn * ~kind, starts, axis=1)
    below = np.cumsum(without, axis=1) - without / 2
    won = (with_box * below).sum(axis=1)
    pairs = with_box.sum(axis=1) * without.sum(axis=1)
    return np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan)


def _drawn(image: Any) -> Boxes:
    """Reference boxes, with the crowds where there are any."""
    return replace(Boxes.of(image.boxes, image.classes), ignored=getattr(image, "ignored", None))


def average_precision(found: Sequence[Any], truths: Sequence[Any], categories: Sequence[str]) -> dict[str, float]:
    """Average precision without pycocotools, fast enough for every epoch; equal to COCO's.

    Args:
        found: per image an object with ``boxes`` ``(n, 4)``, ``scores`` ``(n,)`` and ``classes`` ``(n,)`` (arrays or
            tensors), for example :class:`Boxes` or the detector's ``Detections``, in any pixels.
        truths: per image a :class:`Boxes` in the same pixels, or an object with ``boxes`` and ``classes``.
        categories: names of the classes.

    Returns:
        ``AP``, ``AP50``, ``AP75`` (NaN where no image has a box), and ``AP50/NAME`` of each class that has one.
    """
    left = [Boxes.of(image.boxes, image.classes, image.scores) for image in found]
    right = [_drawn(image) for image in truths]
    ones = np.ones((1, len(left)), np.int32)
    tables, by_class = [], {}
    for k, name in enumerate(categories):
        row = average_precisions(match_coco(left, right, k), ones)[0]
        if np.isfinite(row[0]):
            tables.append(row)
            by_class[f"AP50/{name}"] = float(row[0])
    mean = np.mean(tables, axis=0) if tables else np.full(len(THRESHOLDS), np.nan)
    return {"AP": float(mean.mean()), "AP50": float(mean[0]), "AP75": float(mean[5]), **by_class}


def _operating_points(matched: Matched, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted true and false positives ``(samples, points)`` at :func:`_points`, and before them the point where
    nothing is accepted.
    """
    places, hit = _points(matched), matched.hit[:, 0]
    nothing = np.zeros((len(weights), 1))
    true = _counted_until(places, hit == TRUE, matched, weights)
    false = _counted_until(places, hit == FALSE, matched, weights)
    return np.concatenate([nothing, true], axis=1), np.concatenate([nothing, false], axis=1)


def _points(matched: Matched) -> np.ndarray:
    """Places at which sensitivity can rise: the last one of every run of equal scores (accepted together) that holds a
    true positive.
    """
    ends = np.flatnonzero(np.diff(matched.scores, append=-np.inf))
    rises = np.flatnonzero(matched.hit[:, 0] == TRUE)
    return np.unique(ends[np.searchsorted(ends, rises)])


def _counted_until(places: np.ndarray, chosen: np.ndarray, matched: Matched, weights: np.ndarray) -> np.ndarray:
    """Weighted number of the chosen detections ``(n,)`` at or before each of some places: ``(samples, places)``.

    Detections are gathered by the stretch between two places that they lie in, so that only the places are summed up,
    not all detections.
    """
    stretch = np.searchsorted(places, np.arange(len(matched.scores)))
    used = np.flatnonzero(chosen & (stretch < len(places)))
    cells = (stretch[used], matched.image[used])
    shape = (len(places), len(matched.truths))
    table = sparse.csr_matrix((np.ones(len(used)), cells), shape=shape)
    counts = table @ weights.T.astype(np.float64)
    return np.cumsum(counts.T, axis=1)


def _top(boxes: Boxes, keep: np.ndarray) -> float:
    return float(boxes.scores[keep].max(initial=0.0))


def _mean_over(values: Values, metric: str, categories: Sequence[str], samples: int) -> np.ndarray:
    """Mean of a metric over the classes for which it is defined, ``(samples,)``; NaN where there is none."""
    columns = [values[name, metric] for name in categories]
    table = np.stack(columns) if columns else np.full((1, samples), np.nan)
    known = np.isfinite(table)
    count = known.sum(axis=0)
    total = np.where(known, table, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _in_chunks(function: Any, matched: Matched, weights: np.ndarray) -> np.ndarray:
    true = (matched.hit == TRUE).any(axis=1)
    parts = [function(matched, part) for part in _parts(weights, int(true.sum()))]
    return np.concatenate(parts)


def _in_chunks_of_images(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    parts = [image_auc(scores, positive, part) for part in _parts(weights, len(scores))]
    return np.concatenate(parts)


def _parts(weights: np.ndarray, columns: int) -> list[np.ndarray]:
    """The samples in parts for which a table of so many columns is not too large."""
    rows = max(1, _CHUNK // max(columns, 1))
    return [weights[start : start + rows] for start in range(0, len(weights), rows)]
