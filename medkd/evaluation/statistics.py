"""Means with confidence intervals over cases or patients, paired comparisons and non-inferiority; deterministic for a
seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from medkd.evaluation.units import Together, Units, times_drawn

RESAMPLES = 2000

FEWEST = 6
"""Below this many cases (or patients) a bootstrap is too narrow: nothing is clear, and nothing is decided."""

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over cases with its confidence interval.

    Attributes:
        mean: NaN where there is no value.
        low: lower bound; NaN where ``n`` is below two.
        high: upper bound, likewise.
        n: what was drawn for the bounds and has a value: patients where they are known, else cases.
    """

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedDifference(Interval):
    """The mean of ``a`` minus that of ``b`` on the same cases, with its interval.

    Attributes:
        p: two-sided p-value of Wilcoxon's signed-rank test over cases, or over patients where they are known; 1 where
            none differs, NaN for fewer than two.
    """

    p: float = nan

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out and the test agrees (p < 0.05); the test alone keeps the interval honest
        for few cases (or patients), where a bootstrap is too narrow: below six nothing is clear."""
        return self.excludes_zero and self.p < 0.05

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0

    @property
    def reversed(self) -> PairedDifference:
        """``b − a``."""
        return PairedDifference(-self.mean, -self.high, -self.low, self.n, self.p)


UNDEFINED = Interval(nan, nan, nan, 0)

Conclusion = Literal["yes", "no", "open", "few"]
"""Of a test for non-inferiority: shown, refuted, neither, or too few cases to say."""

Answer = Literal["yes", "no", "open", "few", "nothing"]
"""Whether a student may replace its teacher; ``nothing`` where one of both has learnt nothing."""


def non_inferior(difference: PairedDifference, margin: float) -> Conclusion:
    """Whether the first of two may replace the second: it is worse by no more than a margin.

    ``yes`` where the whole interval of ``first − second`` lies above ``−margin``, ``no`` where it lies below, ``open``
    where it holds ``−margin``, ``few`` below :data:`FEWEST` cases (or patients). The bound of a two-sided 95 % interval
    is a one-sided test at 2.5 % (Piaggio et al., JAMA 308(24), 2012, doi:10.1001/jama.2012.87802).

    Args:
        difference: ``first − second`` in a measure of which more is better.
        margin: the largest loss that is accepted, above 0.
    """
    if difference.n < FEWEST or not isfinite(difference.low):
        return "few"
    if difference.low > -margin:
        return "yes"
    return "no" if difference.high < -margin else "open"


def has_learnt(value: Interval, learnt: float) -> bool:
    """Whether a score is better than nothing.

    Args:
        value: the score.
        learnt: a mean below this is no better than nothing.
    """
    return bool(isfinite(value.mean) and value.mean >= learnt)


def may_replace(
    difference: PairedDifference, margin: float, *, student: Interval, teacher: Interval, learnt: float
) -> Answer:
    """Whether a student may replace its teacher: :func:`non_inferior`, where there is something to replace.

    A teacher that has learnt nothing cannot be replaced, whatever the difference, and a student that has learnt nothing
    replaces none, however little the teacher has.

    Args:
        difference: ``student − teacher``.
        margin: the largest loss that is accepted, above 0.
        student: its score.
        teacher: likewise.
        learnt: a mean score below this is no better than nothing.
    """
    if not has_learnt(teacher, learnt):
        return "nothing"
    found = non_inferior(difference, margin)
    return found if found == "no" or has_learnt(student, learnt) else "nothing"


def mean_interval(
    values: ArrayLike,
    level: float = LEVEL,
    seed: int = 0,
    method: Literal["percentile", "BCa"] = "percentile",
    resamples: int = RESAMPLES,
    groups: ArrayLike | None = None,
) -> Interval:
    """Mean over cases and its bootstrap confidence interval over cases or patients.

    Cases, or patients with all of their cases, are drawn with replacement. For a matrix the statistic is the mean over
    classes of the classes' means over cases (nnU-Net's foreground mean), and whole cases are drawn, so that classes of
    one case stay together. Efron and Tibshirani, An Introduction to the Bootstrap, Chapman & Hall 1993.

    Args:
        values: ``(cases,)`` or ``(cases, classes)``; NaN where a case has no value.
        level: coverage.
        seed: of the resampling.
        method: ``"percentile"`` or ``"BCa"`` (bias-corrected and accelerated).
        resamples: bootstrap samples.
        groups: place of each case's patient ``(cases,)``, see :func:`groups_of`; None draws cases.

    >>> interval = mean_interval([0.8, 0.9, 0.85, 0.95])
    >>> round(interval.mean, 3), interval.low < interval.mean < interval.high
    (0.875, True)
    >>> mean_interval([0.8, 0.8, 0.9, 0.9, 0.85, 0.85, 0.95, 0.95], groups=[0, 0, 1, 1, 2, 2, 3, 3]) == interval
    True
    """
    units = Units.of(values, groups)
    n = len(units.total)
    if not n:
        return UNDEFINED
    mean = float(units.mean_of(np.arange(n)[None])[0])
    if n < 2:
        return Interval(mean, nan, nan, n)
    if np.ptp(units.means[units.count > 0]) == 0:  # nothing to resample; BCa would divide by zero
        return Interval(mean, mean, mean, n)

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return units.mean_of(np.moveaxis(np.asarray(index), axis, -1))

    from scipy import stats

    found = stats.bootstrap(
        (np.arange(n),),
        statistic,
        n_resamples=resamples,
        confidence_level=level,
        method=method,
        vectorized=True,
        batch=max(1, 2_000_000 // units.total.size),
        random_state=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    return Interval(mean, float(low), float(high), n)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    level: float = LEVEL,
    seed: int = 0,
    groups: ArrayLike | None = None,
    at_best: float = 1.0,
) -> PairedDifference:
    """The mean of ``a`` minus that of ``b`` on the same cases, bootstrap interval, and Wilcoxon's signed-rank test.

    Means are those of :func:`mean_interval`, each over the values that it has, on all cases as in every bootstrap
    sample; for what is absent from one alone see :class:`~medkd.evaluation.units.Together`. Wilcoxon, Biometrics
    Bulletin 1(6), 1945, doi:10.2307/3001968; ties with zero difference are left out. For matrices the test compares
    the cases' means over the classes. Where patients are known, they are what is drawn and what the test compares: the
    means over their cases.

    Args:
        a: ``(cases,)`` or ``(cases, classes)``, NaN where there is no value.
        b: the same cases (and classes) in the same order.
        level: coverage of the interval.
        seed: of the resampling.
        groups: place of each case's patient ``(cases,)``; None takes every case for itself.
        at_best: see :meth:`~medkd.evaluation.units.Together.of`.

    >>> leaves_alone, invents = [0.9, 0.7, nan], [0.9, 0.7, 0.0]  # a structure that the third case does not have
    >>> round(paired_difference(leaves_alone, invents).mean, 4) == round(1.6 / 2 - 1.6 / 3, 4)
    True
    """
    pair = Together.of(np.stack([np.asarray(a, np.float64), np.asarray(b, np.float64)]), groups, at_best)
    mine, theirs = pair.means(np.ones((1, pair.n)))[:, 0]
    mean = float(mine - theirs)
    if not isfinite(mean):
        return PairedDifference(nan, nan, nan, 0)
    p = wilcoxon_p(pair.filled[0] - pair.filled[1], groups)
    if pair.n < 2:
        return PairedDifference(mean, nan, nan, pair.n, p)
    drawn = np.random.default_rng(seed).integers(pair.n, size=(RESAMPLES, pair.n))
    mine, theirs = pair.means(times_drawn(drawn))
    interval = percentile_interval(mean, mine - theirs, pair.n, level)
    return PairedDifference(mean, interval.low, interval.high, pair.n, p)


def wilcoxon_p(differences: ArrayLike, groups: ArrayLike | None = None) -> float:
    """Of the units' means over the classes; 1 where none differs, NaN for fewer than two.

    Args:
        differences: ``(cases,)`` or ``(cases, classes)``, NaN where there is none.
        groups: place of each case's patient ``(cases,)``; None takes every case for itself.
    """
    table = Units.of(differences, groups).means
    if len(table) < 2:
        return nan
    from scipy import stats

    per_unit = np.nanmean(table, axis=1)
    return float(stats.wilcoxon(per_unit).pvalue) if per_unit.any() else 1.0


def count_patients(cases: Sequence[str], patients: Mapping[str, str]) -> int | None:
    """How many patients the cases show, those without a known one counted each; None where none is known."""
    return len(np.unique(groups_of(cases, patients))) if patients else None


def patients_of(scores: Iterable[Any]) -> dict[str, str]:
    """Case → patient, as any of several scores of the same cases say it under ``patients``; of different answers the
    first. Scores of a task that knows no patients have none.
    """
    found: dict[str, str] = {}
    for score in scores:
        found = {**getattr(score, "patients", {}), **found}
    return found


def groups_of(cases: Sequence[str], patients: Mapping[str, str]) -> np.ndarray:
    """Place of each case's patient ``(cases,)``; a case without a known patient is a patient of its own."""
    places: dict[str, int] = {}
    groups = []
    for case in cases:
        name = f"patient {patients[case]}" if case in patients else f"case {case}"
        groups.append(places.setdefault(name, len(places)))
    return np.array(groups, np.int64)


def resampled_weights(groups: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each case is drawn ``(resamples, cases)`` when whole groups are drawn with replacement.

    Efron and Tibshirani, An Introduction to the Bootstrap, Chapman & Hall 1993, with patients as the units (Field and
    Welsh, JRSS B 69, 2007, doi:10.1111/j.1467-9868.2007.00593.x).
    """
    count = int(groups.max(initial=-1)) + 1
    if not count:
        return np.zeros((resamples, 0), np.int32)
    random = np.random.default_rng(seed)
    drawn = random.multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn.astype(np.int32)[:, groups]


def percentile_interval(estimate: float, samples: np.ndarray, count: int, level: float = LEVEL) -> Interval:
    """An estimate with the percentiles of its bootstrap samples as bounds.

    Args:
        estimate: on all cases.
        samples: ``(resamples,)``; those in which the measure is not defined are NaN and left out.
        count: groups that were drawn from; there are no bounds for fewer than two.
        level: coverage.
    """
    known = samples[np.isfinite(samples)]
    if count < 2 or not len(known) or not isfinite(estimate):
        return Interval(estimate, nan, nan, count)
    low, high = np.percentile(known, [50 * (1 - level), 50 * (1 + level)])
    return Interval(estimate, float(low), float(high), count)


def resampled_p(differences: np.ndarray, count: int) -> float:
    """Twice the smaller share of the sampled differences on either side of zero; NaN below :data:`FEWEST` groups."""
    known = differences[np.isfinite(differences)]
    if count < FEWEST or not len(known):
        return nan
    below, above = np.count_nonzero(known <= 0), np.count_nonzero(known >= 0)
    share = (min(below, above) + 1) / (len(known) + 1)
    return min(1.0, 2 * share)


def finite(value: float | None) -> float | None:
    """``value``, or None where it is not finite, since JSON has no NaN."""
    return value if value is not None and isfinite(value) else None


def interval_json(interval: Interval) -> dict[str, float | int | None]:
    """An interval as JSON values; undefined ones are null."""
    return {
        "mean": finite(interval.mean),
        "low": finite(interval.low),
        "high": finite(interval.high),
        "n": interval.n,
    }
