"""Average precision, FROC sensitivity and the image-level AUC, counted for many weightings of the images at once.

A weighting says how often each image counts: ones for the scores themselves, and one row per sample for a bootstrap,
which so costs cumulative sums instead of thousands of evaluations. Counting an image twice is the same as listing it
twice, but for the order of equal scores, on which COCO's precision depends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from medkd.evaluation.detection.matching import FALSE, THRESHOLDS, TRUE, Criterion, Matched, match_coco, match_froc
from medkd.evaluation.detection.predictions import Boxes

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per image at which sensitivity is read."""

RECALLS = np.linspace(0, 1, 101)
_CHUNK = 4_000_000  # numbers per intermediate table

Key = tuple[str, str]
"""(class or empty, metric)."""

Values = dict[Key, np.ndarray]


@dataclass(frozen=True, eq=False)
class Matches:
    """A set of detections compared with the reference boxes of the same images, once and for all.

    Attributes:
        categories: names of the classes.
        excluded: classes that a second mean and the FROC of all classes leave out.
        coco: per class, at ten thresholds.
        froc: per class; the last one is all classes together, without the excluded ones.
        scores: ``(images, classes + 1)`` highest score in each image per class, the last one of all but the excluded
            classes.
    """

    categories: tuple[str, ...]
    excluded: tuple[str, ...]
    coco: tuple[Matched, ...]
    froc: tuple[Matched, ...]
    scores: np.ndarray

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
    kept = np.array([name not in excluded for name in categories], bool)
    rest_found, rest_truths = ([b.only(kept[b.classes]) for b in side] for side in (found, truths))
    classes = range(len(categories))
    froc = [match_froc(found, truths, k, threshold=threshold, criterion=criterion) for k in classes]
    froc.append(match_froc(rest_found, rest_truths, None, threshold=threshold, criterion=criterion))
    return Matches(
        tuple(categories),
        tuple(name for name in categories if name in excluded),
        tuple(match_coco(found, truths, k) for k in classes),
        tuple(froc),
        np.array([[*(_top(f, f.classes == k) for k in classes), _top(f, kept[f.classes])] for f in found]).reshape(
            -1, len(categories) + 1
        ),
    )


def measure(matches: Matches, weights: np.ndarray) -> Values:
    """Every metric under every weighting.

    ``AP``, ``AP50``, ``AP75`` are means over the classes that have a reference box; ``AP without …`` leaves the
    excluded classes out. ``S@R`` is the sensitivity at R false positives per image, ``AUC`` that of the highest score
    per image for images with a box against those without. NaN where a metric is not defined.

    Args:
        matches: what is counted.
        weights: ``(samples, images)``, how often each image counts.

    Returns:
        (class or empty, metric) → ``(samples,)``.
    """
    values: Values = {}
    tables = [_in_chunks(average_precisions, m, weights) for m in matches.coco]
    for name, table in zip(matches.categories, tables, strict=True):
        values |= {(name, "AP"): table.mean(axis=1), (name, "AP50"): table[:, 0], (name, "AP75"): table[:, 5]}
    for metric in ("AP", "AP50", "AP75"):
        values["", metric] = _mean([values[name, metric] for name in matches.categories], len(weights))
    if matches.excluded:
        rest = [name for name in matches.categories if name not in matches.excluded]
        values["", rest_key(matches.excluded)] = _mean([values[name, "AP"] for name in rest], len(weights))
    for place, name in enumerate((*matches.categories, "")):
        found = _in_chunks(sensitivities, matches.froc[place], weights)
        values |= {(name, rate_key(rate)): found[:, i] for i, rate in enumerate(RATES)}
        values[name, "AUC"] = _in_chunks_of_images(matches.scores[:, place], matches.froc[place].truths > 0, weights)
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
    total = (weights @ matched.truths).astype(np.float64)
    places = np.flatnonzero((matched.hit == TRUE).any(axis=1))
    listed = _counted_until(places, np.ones(len(matched.scores), bool), matched, weights)
    drawn = weights[:, matched.image[places]].astype(np.float64)
    result = np.zeros((len(weights), len(THRESHOLDS)))
    for t in range(len(THRESHOLDS)):
        here = np.flatnonzero(matched.hit[places, t] == TRUE)
        if not len(here):
            continue
        true = np.cumsum(drawn[:, here], axis=1)
        precision = true / np.maximum(listed[:, here], 1)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALLS, true / np.maximum(total, 1)[:, None], side="right")
        result[:, t] = (precision * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
    return np.where(total[:, None] > 0, result, np.nan)


def sensitivities(matched: Matched, weights: np.ndarray, rates: Sequence[float] = RATES) -> np.ndarray:
    """Sensitivity ``(samples, rates)``: the highest share of the reference boxes found with at most ``rate`` false
    positives per image.

    Args:
        matched: from :func:`~medkd.evaluation.detection.matching.match_froc`.
        weights: ``(samples, images)``.
        rates: false positives per image.
    """
    total, images = (weights @ matched.truths).astype(np.float64), weights.sum(axis=1)
    true, false = _operating_points(matched, weights)
    result = np.zeros((len(weights), len(rates)))
    for i, rate in enumerate(rates):
        allowed = (false <= rate * images[:, None] + 1e-9).sum(axis=1) - 1
        found = np.take_along_axis(true, np.maximum(allowed, 0)[:, None], axis=1)[:, 0]
        result[:, i] = np.where(allowed >= 0, found, 0) / np.maximum(total, 1)
    return np.where(total[:, None] > 0, result, np.nan)


def froc_curve(matched: Matched) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The whole curve: false positives per image, sensitivity, and the score that gives them; empty without reference
    boxes.
    """
    ones = np.ones((1, len(matched.truths)), np.int32)
    total = matched.truths.sum()
    if not total:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    true, false = _operating_points(matched, ones)
    return false[0] / len(matched.truths), true[0] / total, np.append(np.inf, matched.scores[_points(matched)])


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
    with_box = np.add.reduceat(drawn * positive[order], starts, axis=1)
    without = np.add.reduceat(drawn * ~positive[order], starts, axis=1)
    below = np.cumsum(without, axis=1) - without / 2
    pairs = with_box.sum(axis=1) * without.sum(axis=1)
    return np.where(pairs > 0, (with_box * below).sum(axis=1) / np.maximum(pairs, 1), np.nan)


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
    left = [Boxes.of(f.boxes, f.classes, f.scores) for f in found]
    right = [Boxes.of(t.boxes, t.classes) for t in truths]
    ones = np.ones((1, len(left)), np.int32)
    tables = [average_precisions(match_coco(left, right, k), ones) for k in range(len(categories))]
    present = [(name, table) for name, table in zip(categories, tables, strict=True) if np.isfinite(table[0, 0])]
    mean = np.concatenate([t for _, t in present]).mean(axis=0) if present else np.full(len(THRESHOLDS), np.nan)
    values = {"AP": float(mean.mean()), "AP50": float(mean[0]), "AP75": float(mean[5])}
    return values | {f"AP50/{name}": float(table[0, 0]) for name, table in present}


def _operating_points(matched: Matched, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted true and false positives ``(samples, points)`` at :func:`_points`, and before them the point where
    nothing is accepted.
    """
    places, hit, start = _points(matched), matched.hit[:, 0], np.zeros((len(weights), 1))
    true, false = (_counted_until(places, hit == kind, matched, weights) for kind in (TRUE, FALSE))
    return np.concatenate([start, true], axis=1), np.concatenate([start, false], axis=1)


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
    shape = (len(places), len(matched.truths))
    table = sparse.csr_matrix((np.ones(len(used)), (stretch[used], matched.image[used])), shape=shape)
    return np.cumsum((table @ weights.T.astype(np.float64)).T, axis=1)


def _top(boxes: Boxes, keep: np.ndarray) -> float:
    return float(boxes.scores[keep].max(initial=0.0))


def _mean(columns: Sequence[np.ndarray], samples: int) -> np.ndarray:
    """Mean over the columns that are defined, ``(samples,)``; NaN where none is."""
    table = np.stack(columns) if columns else np.full((1, samples), np.nan)
    known = np.isfinite(table)
    total = np.where(known, table, 0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def _in_chunks(function: Any, matched: Matched, weights: np.ndarray) -> np.ndarray:
    rows = max(1, _CHUNK // max(int((matched.hit == TRUE).any(axis=1).sum()), 1))
    return np.concatenate([function(matched, weights[i : i + rows]) for i in range(0, len(weights), rows)])


def _in_chunks_of_images(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    rows = max(1, _CHUNK // max(len(scores), 1))
    return np.concatenate([image_auc(scores, positive, weights[i : i + rows]) for i in range(0, len(weights), rows)])
