"""Bootstrap intervals of detection scores and paired comparisons, over patients where they are known; deterministic for
a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medkd.core.errors import DataError
from medkd.evaluation.detection.metrics import Key, Matches, measure
from medkd.evaluation.statistics import Interval, PairedDifference

RESAMPLES = 1000

# below this many patients (or images) a bootstrap is too narrow to call anything clear; see PairedDifference.clear
_FEWEST = 6


def groups_of(cases: Sequence[str], patients: Mapping[str, str]) -> np.ndarray:
    """Place of each image's patient ``(images,)``; an image without a known patient is a patient of its own."""
    names = [f"patient {patients[c]}" if c in patients else f"image {c}" for c in cases]
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([order[name] for name in names], np.int64)


def resampled_weights(groups: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each image is drawn ``(resamples, images)`` when whole groups are drawn with replacement.

    Efron and Tibshirani, An Introduction to the Bootstrap, Chapman & Hall 1993, with patients as the units (Field and
    Welsh, JRSS B 69, 2007, doi:10.1111/j.1467-9868.2007.00593.x).
    """
    count = int(groups.max(initial=-1)) + 1
    if not count:
        return np.zeros((resamples, 0), np.int32)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn.astype(np.int32)[:, groups]


def intervals(
    matches: Matches,
    groups: np.ndarray | None = None,
    *,
    level: float = 0.95,
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
    return {
        key: Interval(float(value[0]), *_bounds(samples[key], value[0], count, level), count)
        for key, value in estimates.items()
    }


def paired_differences(
    first: Matches,
    second: Matches,
    groups: np.ndarray | None = None,
    *,
    level: float = 0.95,
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
        found[key] = PairedDifference(value, *_bounds(drawn, value, count, level), count, _p_value(drawn, count))
    return found


def _bounds(samples: np.ndarray, estimate: float, count: int, level: float) -> tuple[float, float]:
    """Percentiles of the samples in which the metric is defined."""
    known = samples[np.isfinite(samples)]
    if count < 2 or not len(known) or not np.isfinite(estimate):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def _p_value(differences: np.ndarray, count: int) -> float:
    known = differences[np.isfinite(differences)]
    if count < _FEWEST or not len(known):
        return float("nan")
    side = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (side + 1) / (len(known) + 1)))
