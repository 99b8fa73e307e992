"""Bootstrap intervals of detection scores and paired comparisons: every metric on the same samples of images."""

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
    count = len(np.unique(groups))
    estimates = _estimates(matches)
    samples = measure(matches, resampled_weights(groups, resamples, seed))
    return {key: percentile_interval(estimates[key], samples[key], count, level) for key in estimates}


def _estimates(matches: Matches) -> dict[Key, float]:
    """Every metric where each image counts once."""
    once = np.ones((1, matches.number), np.int32)
    return {key: float(value[0]) for key, value in measure(matches, once).items()}


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
    if not _comparable(first, second):
        raise DataError(
            "Two sets of detections can be compared on the same images, reference boxes and classes only; score them "
            "alike."
        )
    groups = np.arange(first.number) if groups is None else groups
    count = len(np.unique(groups))
    weights = resampled_weights(groups, resamples, seed)
    ours, theirs = _estimates(first), _estimates(second)
    our_samples, their_samples = measure(first, weights), measure(second, weights)
    found = {}
    for key in ours:
        drawn = our_samples[key] - their_samples[key]
        interval = percentile_interval(ours[key] - theirs[key], drawn, count, level)
        p = resampled_p(drawn, count)
        found[key] = PairedDifference(interval.mean, interval.low, interval.high, count, p)
    return found


def _comparable(first: Matches, second: Matches) -> bool:
    if (first.categories, first.excluded) != (second.categories, second.excluded):
        return False
    if first.number != second.number:
        return False
    return all(ours.equals(theirs) for ours, theirs in zip(first.truths, second.truths, strict=True))
