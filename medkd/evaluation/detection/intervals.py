"""Bootstrap intervals of detection scores and paired comparisons: every metric of boxes on the same samples of images."""

from __future__ import annotations

import numpy as np

from medkd.core.errors import DataError
from medkd.evaluation.detection.metrics import Key, Matches, measure
from medkd.evaluation.statistics import (
    LEVEL,
    Interval,
    PairedDifference,
    percentile_interval,
    resampled_p,
    resampled_weights,
)

RESAMPLES = 1000


def intervals(
    matches: Matches,
    groups: np.ndarray | None = None,
    *,
    level: float = LEVEL,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[Key, Interval]:
    """Every metric with its percentile interval.

    Args:
        matches: what is counted.
        groups: place of each image's patient ``(images,)``; None draws images.
        level: coverage.
        seed: of the resampling.
        resamples: bootstrap samples.

    Returns:
        (class or empty, metric) → estimate, bounds (NaN for fewer than two groups), and the number of groups.
    """
    groups = np.arange(matches.number) if groups is None else groups
    estimates = measure(matches, np.ones((1, matches.number), np.int32))
    samples = measure(matches, resampled_weights(groups, resamples, seed))
    count = len(np.unique(groups))
    return {key: percentile_interval(float(value[0]), samples[key], count, level) for key, value in estimates.items()}


def paired_differences(
    first: Matches,
    second: Matches,
    groups: np.ndarray | None = None,
    *,
    level: float = LEVEL,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[Key, PairedDifference]:
    """The differences ``first − second`` on the same images, both counted on the same samples of them.

    The p-value is twice the smaller share of the samples on either side of zero, which is what the interval can say;
    for fewer than six patients (or images) there is none, and nothing is clear.

    Args:
        first: detections of one model.
        second: of another one, on the same images in the same order.
        groups: place of each image's patient; None draws images.
        level: coverage.
        seed: of the resampling.
        resamples: bootstrap samples.

    Raises:
        DataError: the two do not have the same images, reference boxes and classes.
    """
    same = first.categories == second.categories and first.excluded == second.excluded and first.number == second.number
    if not same or any((a.truths != b.truths).any() for a, b in zip(first.froc, second.froc, strict=True)):
        raise DataError(
            "Two sets of detections can be compared on the same images, reference boxes and classes only; score them "
            "alike."
        )
    groups = np.arange(first.number) if groups is None else groups
    count = len(np.unique(groups))
    one, weights = np.ones((1, first.number), np.int32), resampled_weights(groups, resamples, seed)
    estimates = [measure(m, one) for m in (first, second)]
    samples = [measure(m, weights) for m in (first, second)]
    found = {}
    for key in estimates[0]:
        value, drawn = float(estimates[0][key][0] - estimates[1][key][0]), samples[0][key] - samples[1][key]
        interval = percentile_interval(value, drawn, count, level)
        found[key] = PairedDifference(value, interval.low, interval.high, count, resampled_p(drawn, count))
    return found
