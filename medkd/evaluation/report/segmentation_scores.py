"""Scores of label maps as a report asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from medkd.core.errors import DataError
from medkd.evaluation.cross_validation import merge_folds
from medkd.evaluation.report.data import Metric
from medkd.evaluation.segmentation import results
from medkd.evaluation.segmentation.folds import SegmentationFolds
from medkd.evaluation.segmentation.results import Summary
from medkd.evaluation.statistics import Interval, PairedDifference, groups_of, paired_difference, patients_of

DICE = Metric(key="Dice", name="Dice")
HD95 = Metric(key="HD95", name="HD95 mm", decimals=2, more_is_better=False)
NSD = Metric(key="NSD", name="NSD")
METRICS = (DICE, HD95, NSD)
FURTHER = tuple(Metric(key=name, name=f"{name} mm", decimals=2, more_is_better=False) for name in results.FURTHER)


@dataclass(frozen=True, eq=False)
class SegmentationScores:
    """The merged summary of the shown folds."""

    summary: Summary

    @classmethod
    def read(cls, run: Path, folds: Sequence[int]) -> SegmentationScores:
        """The scores of some folds of a run."""
        return cls(merge_folds(run, folds, SegmentationFolds()))

    @cached_property
    def cases(self) -> tuple[str, ...]:
        """File names of the references."""
        return tuple(case.name for case in self.summary.cases)

    @cached_property
    def patients(self) -> dict[str, str]:
        """File name of a reference → its patient, where known."""
        return self.summary.patients

    @property
    def metrics(self) -> tuple[str, ...]:
        """What was computed."""
        return self.summary.metrics

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The structures."""
        return tuple(name for name, _ in self.summary.structures)

    def value(self, metric: str, part: str = "") -> Interval:
        """A metric's mean over cases; of all structures the mean of their means."""
        structure = self.parts.index(part) if part else None
        return self.summary.interval(_metric(metric), structure)

    def compare(self, other: SegmentationScores) -> SegmentationDifferences:
        """Case by case.

        Raises:
            DataError: the two were scored with different structures.
        """
        if self.summary.structures != other.summary.structures:
            mine, theirs = ", ".join(self.parts), ", ".join(other.parts)
            raise DataError(
                f"Two runs were scored with different structures ({mine} and {theirs}) and cannot be compared; "
                "evaluate them with one dataset.json."
            )
        return SegmentationDifferences(self, other)

    def case_means(self) -> np.ndarray:
        """Mean Dice over the structures of each case; NaN where all are absent."""
        table = self.case_values()
        known = np.isfinite(table)
        count = known.sum(axis=1)
        total = np.where(known, table, 0).sum(axis=1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def case_values(self) -> np.ndarray:
        """Dice ``(cases, structures)``; NaN where a structure is absent."""
        return self.summary.table("Dice")

    def case_rows(self, metric: str) -> dict[str, np.ndarray]:
        """Case → a metric of each structure."""
        return dict(zip(self.cases, self.summary.table(_metric(metric)), strict=True))

    def failures(self, case: str) -> list[str]:
        """What went wrong in a case: ``spleen missed``, ``liver invented``."""
        failed = []
        for score in self.summary.cases[self.cases.index(case)].scores:
            if score.status in ("missed", "invented"):
                failed.append(f"{score.name} {score.status}")
        return failed


@dataclass(frozen=True, eq=False)
class SegmentationDifferences:
    """``first − second`` on the cases that both scored; independent are patients, where they are known."""

    first: SegmentationScores
    second: SegmentationScores

    def of(self, metric: str, part: str = "") -> PairedDifference | None:
        """The paired difference of a structure, or of the mean over the structures."""
        return _difference(self, metric, part)


@cache
def _difference(pair: SegmentationDifferences, metric: str, part: str) -> PairedDifference | None:
    mine, theirs = pair.first.case_rows(metric), pair.second.case_rows(metric)
    shared = sorted(set(mine) & set(theirs))
    if not shared:
        return None
    a = np.array([mine[case] for case in shared])
    b = np.array([theirs[case] for case in shared])
    if part:
        index = pair.first.parts.index(part)
        a, b = a[:, index], b[:, index]
    groups = groups_of(shared, patients_of([pair.first, pair.second]))
    found = paired_difference(a, b, groups=groups, at_best=results.at_best(_metric(metric)))
    return found if np.isfinite(found.mean) else None


def _metric(key: str) -> results.Metric:
    for metric in (*results.METRICS, *results.FURTHER):
        if metric == key:
            return metric
    raise KeyError(key)
