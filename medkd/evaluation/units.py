"""Values of cases by what is independent of each other, of one score and of several that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class Units:
    """What intervals and tests take for independent: patients with all of their cases, or single cases.

    Attributes:
        total: sums of the values of each unit's cases ``(units, columns)``; units without any value are left out.
        count: how many values these are, likewise.
    """

    total: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, values: ArrayLike, groups: ArrayLike | None = None) -> Units:
        """The units of ``(cases,)`` or ``(cases, columns)``, NaN where there is no value.

        Args:
            values: of the cases.
            groups: place of each case's patient ``(cases,)``; None makes every case a unit.
        """
        table = np.asarray(values, dtype=np.float64)
        table = table[:, None] if table.ndim == 1 else table
        if not table.size:
            return cls(np.zeros((0, 1)), np.zeros((0, 1), np.int64))
        known = np.isfinite(table)
        has_value = known.any(axis=1)
        filled, known = np.where(known, table, 0.0)[has_value], known[has_value].astype(np.int64)
        if groups is None:
            return cls(filled, known)
        names, places = np.unique(np.asarray(groups)[has_value], return_inverse=True)
        total, count = np.zeros((len(names), table.shape[1])), np.zeros((len(names), table.shape[1]), np.int64)
        np.add.at(total, places, filled)
        np.add.at(count, places, known)
        return cls(total, count)

    @property
    def means(self) -> np.ndarray:
        """Of each unit over its cases ``(units, columns)``; NaN where it has no value."""
        return np.where(self.count > 0, self.total / np.maximum(self.count, 1), np.nan)

    def mean_of(self, drawn: np.ndarray) -> np.ndarray:
        """The mean over columns of their means over the drawn units' cases: ``(samples, units)`` → ``(samples,)``;
        columns without a value in a sample are left out of it.
        """
        return mean_of_means(self.total[drawn].sum(axis=-2), self.count[drawn].sum(axis=-2))


@dataclass(frozen=True, eq=False)
class Together:
    """Several scores of the same cases, as they are compared.

    A score has no value (NaN) of a structure that is in neither its label map nor the reference. Another that invented
    the structure has one there, its worst. Means are each over what it has, as everywhere, so that their difference is
    the difference of the means that are shown. Where case stands against case, in tests and ranks, what was rightly
    left alone counts as the best value. What none has a value of is left out.

    Attributes:
        total: sums of each score's own values over each unit's cases ``(scores, units, columns)``.
        count: how many values these are, likewise.
        filled: ``(scores, cases, columns)`` with the best value for what is absent from some; NaN where from all.
        unit_means: of ``filled`` over each unit's cases, and then over the columns ``(scores, units)``.
    """

    total: np.ndarray
    count: np.ndarray
    filled: np.ndarray
    unit_means: np.ndarray

    @classmethod
    def of(cls, values: ArrayLike, groups: ArrayLike | None = None, at_best: float = 1.0) -> Together:
        """Of ``(scores, cases)`` or ``(scores, cases, columns)``.

        Args:
            values: NaN where there is none.
            groups: place of each case's patient ``(cases,)``; None makes every case a unit.
            at_best: the best value that there is: 1 of Dice, IoU and NSD, 0 of distances.
        """
        table = np.asarray(values, np.float64)
        table = table[:, :, None] if table.ndim == 2 else table
        known = np.isfinite(table)
        table = np.where(known, table, nan)
        shared = np.asarray(known.any(axis=(0, 2)))  # of the cases; all scores have the same units then
        table, known = table[:, shared], known[:, shared]
        places = np.arange(len(shared)) if groups is None else np.asarray(groups)
        _, units = np.unique(places[shared], return_inverse=True)
        filled = np.where(known.any(axis=0) & ~known, at_best, table)
        sums = [_sums(part, units) for part in (np.where(known, table, 0.0), known, filled, np.isfinite(filled))]
        whole = np.full((len(table), len(shared), table.shape[2]), nan)
        whole[:, shared] = filled
        return cls(sums[0], sums[1], whole, mean_of_means(sums[2], sums[3]))

    @property
    def n(self) -> int:
        """How many units any score has a value of."""
        return self.total.shape[1]

    def means(self, times: np.ndarray) -> np.ndarray:
        """Each score's mean over columns of their means over its own values ``(scores, samples)``; NaN where it has
        none.

        Args:
            times: how often each unit counts ``(samples, units)``.
        """
        every = zip(self.total, self.count, strict=True)  # one by one: equal scores give equal means
        return np.stack([mean_of_means(times @ total, times @ count) for total, count in every])


def _sums(table: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Over each unit's cases: ``(scores, cases, columns)`` → ``(scores, units, columns)``; NaN counts as nothing."""
    found = np.zeros((len(table), int(units.max(initial=-1)) + 1, table.shape[2]))
    np.add.at(found.swapaxes(0, 1), units, np.nan_to_num(table.astype(np.float64)).swapaxes(0, 1))
    return found


def times_drawn(drawn: np.ndarray) -> np.ndarray:
    """How often each of n units is drawn ``(samples, n)``, from the n places that each sample drew, likewise."""
    times = np.zeros(drawn.shape)
    np.add.at(times, (np.arange(len(drawn))[:, None], drawn), 1)
    return times


def mean_of_means(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The mean over classes of their means, from sums ``(..., classes)`` of so many values; a class without any is left
    out, NaN where there is no other.
    """
    means, known = total / np.maximum(count, 1), (count > 0).sum(axis=-1)
    return np.where(known > 0, means.sum(axis=-1) / np.maximum(known, 1), nan)
