"""Bootstrap intervals of detection scores and paired comparisons: every metric on the same samples of images."""

from __future__ import annotations

from collections.abc import Sequence

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


def crossed_differences(
    first: Sequence[Matches],
    second: Sequence[Matches],
    groups: np.ndarray | None = None,
    *,
    level: float = LEVEL,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[Key, PairedDifference]:
    """The differences ``first − second`` of the means over the seeds of two models, on the same images, counted on the
    same samples of them.

    Seeds are a random effect, as in :func:`~medkd.evaluation.ranking.crossed_difference`: each sample draws the seeds
    of either model and the images (patients), these the same for all. The p-value is twice the smaller share of the
    samples on either side of zero, which is what the interval can say; for fewer than six patients (or images) there is
    none, and nothing is clear.

    Args:
        first: detections of each seed of one model.
        second: of another one, on the same images in the same order.
        groups: place of each image's patient; None draws images.
        level: coverage.
        seed: of the resampling.
        resamples: bootstrap samples.

    Raises:
        DataError: not all have the same images, reference boxes and classes.
    """
    for other in (*first, *second):
        if not _comparable(first[0], other):
            raise DataError(
                "Sets of detections can be compared on the same images, reference boxes and classes only; score them "
                "alike."
            )
    groups = np.arange(first[0].number) if groups is None else groups
    count = len(np.unique(groups))
    weights, random = resampled_weights(groups, resamples, seed), np.random.default_rng(seed)
    ours, theirs = (_over_seeds(side, weights, random) for side in (first, second))
    found = {}
    for key, (mean, samples) in ours.items():
        drawn = samples - theirs[key][1]
        interval = percentile_interval(mean - theirs[key][0], drawn, count, level)
        found[key] = PairedDifference(interval.mean, interval.low, interval.high, count, resampled_p(drawn, count))
    return found


def _over_seeds(
    side: Sequence[Matches], weights: np.ndarray, random: np.random.Generator
) -> dict[Key, tuple[float, np.ndarray]]:
    """The mean over the seeds, and that over as many drawn ones in each sample of the images ``(resamples,)``."""
    once = [_estimates(seed) for seed in side]
    samples = [measure(seed, weights) for seed in side]
    drawn, places = random.integers(len(side), size=(len(side), len(weights))), np.arange(len(weights))
    found = {}
    for key in once[0]:
        mean = float(np.mean([estimates[key] for estimates in once]))
        found[key] = mean, np.stack([sample[key] for sample in samples])[drawn, places].mean(axis=0)
    return found


def _comparable(first: Matches, second: Matches) -> bool:
    if (first.categories, first.excluded) != (second.categories, second.excluded):
        return False
    if first.number != second.number:
        return False
    return all(ours.equals(theirs) for ours, theirs in zip(first.truths, second.truths, strict=True))
