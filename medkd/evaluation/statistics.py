"""Means with confidence intervals over cases, and paired comparisons; deterministic for a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean over cases with its confidence interval.

    Attributes:
        mean: NaN where there is no value.
        low: lower bound; NaN for fewer than two cases.
        high: upper bound, likewise.
        n: cases that have a value.
    """

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedDifference(Interval):
    """The mean of ``a − b`` over the cases that both have, with its interval.

    Attributes:
        p: two-sided p-value of Wilcoxon's signed-rank test; 1 where no case differs, NaN for fewer than two cases.
    """

    p: float = float("nan")

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out and the test agrees (p < 0.05); the test alone keeps the interval honest
        for few cases, where a bootstrap is too narrow: below six cases nothing is clear."""
        return (self.low > 0 or self.high < 0) and self.p < 0.05


def mean_interval(
    values: ArrayLike,
    level: float = 0.95,
    seed: int = 0,
    method: Literal["percentile", "BCa"] = "percentile",
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean and bootstrap confidence interval over cases.

    Cases are drawn with replacement. For a matrix the statistic is the mean over classes of the classes' means over
    cases (nnU-Net's foreground mean), and whole cases are drawn, so that classes of one case stay together.
    Efron and Tibshirani, An Introduction to the Bootstrap, Chapman & Hall 1993.

    Args:
        values: ``(cases,)`` or ``(cases, classes)``; NaN where a case has no value.
        level: coverage.
        seed: of the resampling.
        method: ``"percentile"`` or ``"BCa"`` (bias-corrected and accelerated).
        resamples: bootstrap samples.
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    table = table[np.isfinite(table).any(axis=1)] if table.size else table.reshape(0, 1)
    n = len(table)
    if not n:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    known = np.isfinite(table)
    filled = np.where(known, table, 0.0)
    mean = float(_mean_of_means(filled[None], known[None])[0])
    if n < 2:
        return Interval(mean, float("nan"), float("nan"), n)
    if np.ptp(table[known]) == 0:  # nothing to resample; BCa would divide by zero
        return Interval(mean, mean, mean, n)

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        drawn = np.moveaxis(np.asarray(index), axis, -1)
        return _mean_of_means(filled[drawn], known[drawn])

    found = stats.bootstrap(
        (np.arange(n),),
        statistic,
        n_resamples=resamples,
        confidence_level=level,
        method=method,
        vectorized=True,
        batch=max(1, 2_000_000 // table.size),
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), n)


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95, seed: int = 0) -> PairedDifference:
    """Mean of ``a − b`` over paired cases, bootstrap interval, and Wilcoxon's signed-rank test.

    Wilcoxon, Biometrics Bulletin 1(6), 1945, doi:10.2307/3001968; ties with zero difference are left out. For matrices
    the test compares the cases' means over the classes that both have.

    Args:
        a: ``(cases,)`` or ``(cases, classes)``, NaN where there is no value.
        b: the same cases (and classes) in the same order.
        level: coverage of the interval.
        seed: of the resampling.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    interval = mean_interval(difference, level, seed)
    table = difference[:, None] if difference.ndim == 1 else difference
    table = table[np.isfinite(table).any(axis=1)] if table.size else table.reshape(0, 1)
    per_case = np.nanmean(table, axis=1) if len(table) else np.zeros(0)
    if interval.n < 2:
        p = float("nan")
    elif not per_case.any():
        p = 1.0
    else:
        p = float(stats.wilcoxon(per_case).pvalue)
    return PairedDifference(interval.mean, interval.low, interval.high, interval.n, p)


def _mean_of_means(filled: np.ndarray, known: np.ndarray) -> np.ndarray:
    """``(samples, cases, classes)`` → ``(samples,)``; classes without a value in a sample are left out of it."""
    count = known.sum(axis=-2)
    means = filled.sum(axis=-2) / np.maximum(count, 1)
    return means.sum(axis=-1) / np.maximum((count > 0).sum(axis=-1), 1)
