"""Comparing several methods at once: corrected p-values, seeds beside cases, how firm an order of methods is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from medkd.evaluation.statistics import (
    LEVEL,
    RESAMPLES,
    Interval,
    PairedDifference,
    groups_of,
    paired_difference,
    patients_of,
    percentile_interval,
    wilcoxon_p,
)
from medkd.evaluation.units import Together, times_drawn


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, Scandinavian Journal of Statistics 6(2), 1979).

    Args:
        p_values: of the comparisons of one family; NaN stays NaN and does not count.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    places = [place for place, p in enumerate(p_values) if isfinite(p)]
    places.sort(key=lambda place: p_values[place])
    corrected = [nan] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(places):
        largest = max(largest, min(1.0, (len(places) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def crossed_difference(
    a: ArrayLike, b: ArrayLike, level: float = LEVEL, seed: int = 0, groups: ArrayLike | None = None
) -> PairedDifference:
    """The mean of ``a`` minus that of ``b`` where both were trained with several seeds: seeds and cases are both drawn
    anew.

    The mean of each is that over its seeds of what :func:`~medkd.evaluation.statistics.mean_interval` gives, each over
    the values that it has; see :class:`~medkd.evaluation.units.Together` for what is absent from some alone.

    Seeds are a random effect: another training would have another one. Each bootstrap sample draws the seeds of ``a``,
    those of ``b`` and the cases (patients with all of their cases, where they are known) with replacement, the cases
    the same for both (Owen, Annals of Applied Statistics 1(2), 2007, doi:10.1214/07-AOAS122). With one seed on each
    side it is :func:`~medkd.evaluation.statistics.paired_difference`. The p-value is Wilcoxon's, of the cases' (or
    patients') means over the seeds.

    Args:
        a: ``(seeds, cases)`` or ``(seeds, cases, classes)``, NaN where there is no value; 1 is the best one.
        b: of other seeds, the same cases (and classes) in the same order.
        level: coverage of the interval.
        seed: of the resampling.
        groups: place of each case's patient ``(cases,)``; None draws cases.
    """
    first, second = np.atleast_2d(np.asarray(a, float)), np.atleast_2d(np.asarray(b, float))
    if len(first) == len(second) == 1:
        return paired_difference(first[0], second[0], level, seed, groups)
    split = len(first)
    every = Together.of(np.concatenate([first, second]), groups)
    means = every.means(np.ones((1, every.n)))[:, 0]
    mean = float(means[:split].mean() - means[split:].mean())
    if not isfinite(mean):
        return PairedDifference(nan, nan, nan, 0)
    p = wilcoxon_p(every.filled[:split].mean(axis=0) - every.filled[split:].mean(axis=0), groups)
    if every.n < 2:
        return PairedDifference(mean, nan, nan, every.n, p)
    random = np.random.default_rng(seed)
    units = np.empty((RESAMPLES, every.n), np.int64)
    seeds = np.empty((RESAMPLES, len(means)), np.int64)
    for number in range(RESAMPLES):
        units[number] = random.integers(every.n, size=every.n)
        seeds[number, :split] = random.integers(split, size=split)
        seeds[number, split:] = split + random.integers(len(second), size=len(second))
    sampled = np.take_along_axis(every.means(times_drawn(units)), seeds.T, axis=0)
    interval = percentile_interval(mean, sampled[:split].mean(axis=0) - sampled[split:].mean(axis=0), every.n, level)
    return PairedDifference(mean, interval.low, interval.high, every.n, p)


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Where a method stands among others.

    Attributes:
        name: of the method.
        mean: its rank, averaged over the cases (or patients); 1 is best.
        place: of its mean score among all, from 1.
        interval: of that place over bootstrap samples of the cases (or patients).
        first: share of the samples in which it comes first.
    """

    name: str
    mean: float
    place: int
    interval: Interval
    first: float


def rank_stability(scores: Mapping[str, ArrayLike], seed: int = 0, groups: ArrayLike | None = None) -> list[Rank]:
    """How firm the order of methods by their mean score is, over bootstrap samples of the cases or patients.

    Wiesenfarth et al., Scientific Reports 11, 2021, doi:10.1038/s41598-021-82017-6.

    Args:
        scores: method → ``(cases,)``, ``(cases, classes)`` or ``(seeds, cases, classes)``, of which more is better and
            1 is best, NaN where there is no value; see :class:`~medkd.evaluation.units.Together`. The mean of
            classes is that of their means.
        seed: of the resampling.
        groups: place of each case's patient ``(cases,)``; None draws and ranks cases.

    Returns:
        The methods by their place; none where one has no value at all.
    """
    names, every = list(scores), _Methods.of(scores, groups)
    if not every.n:
        return []
    means = every.means(np.ones((1, every.n)))[:, 0]
    if not np.isfinite(means).all():
        return []
    places = stats.rankdata(-means, method="min").astype(int)
    ranks = stats.rankdata(-every.unit_means, axis=0).mean(axis=1)
    random = np.random.default_rng(seed)
    sampled_means = every.means(times_drawn(random.integers(every.n, size=(RESAMPLES, every.n))))
    sampled_means = sampled_means[:, np.isfinite(sampled_means).all(axis=0)]  # others say nothing of the order
    sampled = stats.rankdata(-sampled_means, axis=0, method="min")
    found = []
    for index, name in enumerate(names):
        low, high = np.percentile(sampled[index], [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        interval = Interval(float(places[index]), float(low), float(high), every.n)
        first = float((sampled[index] == 1).mean())
        found.append(
            Rank(name=name, mean=float(ranks[index]), place=int(places[index]), interval=interval, first=first)
        )
    return sorted(found, key=lambda rank: (rank.place, rank.name))


@dataclass(frozen=True)
class CriticalDifference:
    """Groups of methods that the Nemenyi test cannot tell apart.

    Attributes:
        distance: of mean ranks from which two methods differ at 5 %.
        p: of Friedman's test that any methods differ.
        groups: names of neighbours by mean rank that do not differ, at least two each; all names where Friedman's test
            finds no difference, after which no two may be compared.
        ranks: name → mean rank, 1 is best.
        cases: on which any has a score; patients, where these were compared.
    """

    distance: float
    p: float
    groups: tuple[tuple[str, ...], ...]
    ranks: Mapping[str, float]
    cases: int


FEWEST_RANKED = 11
"""Cases (or patients) below which Friedman's test has not yet its distribution (Demšar, JMLR 7, 2006, section
3.2.2)."""


@dataclass(frozen=True, eq=False)
class CaseTable:
    """What several scores say of the cases that all of them have.

    Attributes:
        values: of the main metric ``(scores, cases, structures)``, or of its mean over the structures where these
            differ; NaN where there is none.
        groups: place of each case's patient ``(cases,)``.
        unit: what is independent: ``patient`` where patients are known, else what a case is called.
    """

    values: np.ndarray
    groups: np.ndarray
    unit: str


def case_table(scores: Sequence[Any], case: str = "case") -> CaseTable | None:
    """The main metric of every case (or what it is called) that all have; None where single cases have none."""
    if not scores or not all(hasattr(score, "case_values") for score in scores):
        return None
    alike = len({score.parts for score in scores}) == 1
    values = []
    for score in scores:  # of other structures, as in data sets whose labels were changed, cases compare by their mean
        table = score.case_values() if alike else score.case_means()[:, None]
        values.append(dict(zip(score.cases, table, strict=True)))
    shared = sorted(set.intersection(*map(set, values)))
    table = np.array([[known[case] for case in shared] for known in values])
    patients = patients_of(scores)
    return CaseTable(table, groups_of(shared, patients), "patient" if patients else case)


def why_not_ranked(scores: Mapping[str, ArrayLike], case: str = "case", groups: ArrayLike | None = None) -> str:
    """Why :func:`critical_difference` is not permitted, in words; empty where it is.

    Args:
        scores: as there; empty where single cases have no score.
        case: what has a score: what the groups are, where there are any.
        groups: as there.
    """
    if not scores:
        return f"it would need a score of every single {case}, which this metric does not give"
    if len(scores) < 3:
        return f"Friedman's and Nemenyi's tests compare three or more, found {len(scores)}"
    units = _Methods.of(scores, groups).n
    if units < FEWEST_RANKED:
        return f"Friedman's test needs {FEWEST_RANKED} {case}s or more that all have a score, found {units}"
    return ""


@dataclass(frozen=True, eq=False)
class _Methods:
    """Scores of methods on the same cases.

    Attributes:
        every: those of every seed of every method.
        spans: which of them are a method's.
    """

    every: Together
    spans: tuple[slice, ...]

    @classmethod
    def of(cls, scores: Mapping[str, ArrayLike], groups: ArrayLike | None) -> _Methods:
        """Of methods as :func:`rank_stability` takes them."""
        tables, spans, start = [np.zeros((0, 0, 1))], [], 0
        for values in scores.values():
            table = np.asarray(values, float)
            table = table[:, None] if table.ndim == 1 else table
            tables.append(table[None] if table.ndim == 2 else table)
            spans.append(slice(start, start + len(tables[-1])))
            start = spans[-1].stop
        return cls(Together.of(np.concatenate(tables[1:] or tables), groups), tuple(spans))

    @property
    def n(self) -> int:
        """How many cases (or patients) any method has a value of."""
        return self.every.n

    @property
    def unit_means(self) -> np.ndarray:
        """:attr:`Together.unit_means` over the seeds ``(methods, units)``."""
        return self._over_seeds(self.every.unit_means)

    def means(self, times: np.ndarray) -> np.ndarray:
        """:meth:`Together.means` over the seeds ``(methods, samples)``."""
        return self._over_seeds(self.every.means(times))

    def _over_seeds(self, values: np.ndarray) -> np.ndarray:
        return np.stack([values[span].mean(axis=0) for span in self.spans])


def critical_difference(scores: Mapping[str, ArrayLike], groups: ArrayLike | None = None) -> CriticalDifference | None:
    """Friedman's and Nemenyi's tests over cases, or over the means of patients (Demšar, JMLR 7, 2006).

    Args:
        scores: as in :func:`rank_stability`. A case counts by the mean over its classes.
        groups: place of each case's patient ``(cases,)``; None compares cases.

    Returns:
        None where :func:`why_not_ranked` gives a reason.
    """
    if why_not_ranked(scores, groups=groups):
        return None
    names, every = list(scores), _Methods.of(scores, groups)
    table, units = every.unit_means, every.n
    p = 1.0 if (np.ptp(table, axis=0) == 0).all() else float(stats.friedmanchisquare(*table).pvalue)
    quantile = stats.studentized_range.ppf(LEVEL, len(names), np.inf) / sqrt(2)
    distance = float(quantile * sqrt(len(names) * (len(names) + 1) / (6 * units)))
    ranks = stats.rankdata(-table, axis=0).mean(axis=1)
    order = sorted(range(len(names)), key=lambda index: ranks[index])
    groups_of_names = _groups(order, ranks, distance, names)
    if p >= 1 - LEVEL:
        groups_of_names = (tuple(names[index] for index in order),)
    means = {name: float(rank) for name, rank in zip(names, ranks, strict=True)}
    return CriticalDifference(distance=distance, p=p, groups=groups_of_names, ranks=means, cases=units)


def _groups(order: list[int], ranks: np.ndarray, distance: float, names: list[str]) -> tuple[tuple[str, ...], ...]:
    """Longest stretches of neighbours within the distance, none inside another."""
    stretches: list[tuple[int, int]] = []
    for start in range(len(order)):
        end = start
        while end + 1 < len(order) and ranks[order[end + 1]] - ranks[order[start]] < distance:
            end += 1
        inside = stretches and end <= stretches[-1][1]
        if end > start and not inside:
            stretches.append((start, end))
    return tuple(tuple(names[index] for index in order[start : end + 1]) for start, end in stretches)
