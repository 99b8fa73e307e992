"""Scores of boxes as a report asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path

import numpy as np

from medkd.core.errors import DataError
from medkd.evaluation.cross_validation import merge_folds
from medkd.evaluation.detection.folds import DetectionFolds
from medkd.evaluation.detection.intervals import crossed_differences
from medkd.evaluation.detection.matching import FALSE, TRUE, match_froc
from medkd.evaluation.detection.metrics import Key, Matches, compare_boxes
from medkd.evaluation.detection.predictions import Boxes, DetectionPredictions
from medkd.evaluation.detection.results import DetectionSummary
from medkd.evaluation.report.data import Metric
from medkd.evaluation.statistics import Interval, PairedDifference, groups_of, patients_of

METRICS = (
    Metric(key="AP", name="AP"),
    Metric(key="AP50", name="AP50"),
    Metric(key="S@1", name="sensitivity at 1 FP / image"),
    Metric(key="AUC", name="AUC of images"),
)


@dataclass(frozen=True, eq=False)
class DetectionScores:
    """The detections in the shown folds' validation images and their scores."""

    found: DetectionPredictions
    summary: DetectionSummary

    @classmethod
    def read(cls, run: Path, folds: Sequence[int]) -> DetectionScores:
        """The scores of some folds of a run."""
        merged = merge_folds(run, folds, DetectionFolds())
        return cls(merged.found, merged.summary)

    @cached_property
    def cases(self) -> tuple[str, ...]:
        """The images."""
        return tuple(self.summary.truths)

    @property
    def patients(self) -> Mapping[str, str]:
        """Image → its patient, where known."""
        return self.summary.patients

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The classes that have boxes."""
        return tuple(name for name in self.summary.categories if name not in self.summary.skipped)

    def value(self, metric: str, part: str = "") -> Interval:
        """A metric of a class, or of all."""
        return self.summary.value(metric, part)

    def compare(self, other: DetectionScores) -> DetectionDifferences:
        """On the same bootstrap samples of the images that both were scored on.

        Raises:
            DataError: they were scored with other classes, rules or reference boxes.
        """
        return self.compare_seeds([self], [other])

    @staticmethod
    def compare_seeds(first: Sequence[DetectionScores], second: Sequence[DetectionScores]) -> DetectionDifferences:
        """The means over the seeds of two runs, on the same bootstrap samples of the images that all were scored on;
        of several seeds these are drawn, too.

        Raises:
            DataError: they were scored with other classes, rules or reference boxes.
        """
        every = [*first, *second]
        summaries = [scores.summary for scores in every]
        if any((one.categories, one.rules) != (summaries[0].categories, summaries[0].rules) for one in summaries):
            raise DataError("Two runs were scored with other classes or rules; validate them anew.")
        shared = sorted(set.intersection(*(set(scores.cases) for scores in every)))
        if not shared:
            return DetectionDifferences({})
        ours, theirs = ([scores.matches(shared) for scores in side] for side in (first, second))
        return DetectionDifferences(crossed_differences(ours, theirs, groups_of(shared, patients_of(every))))

    @cached_property
    def cut(self) -> float:
        """The lowest score at which there is at most one false positive per image; what is shown in pictures reaches
        it.
        """
        curve = self.summary.curves.get("")
        if curve is None:
            return 1.0
        allowed = np.flatnonzero(curve.false_positives <= 1)
        value = float(curve.score[allowed[-1]]) if len(allowed) else np.nan
        return value if isfinite(value) else 1.0

    def matches(self, cases: Sequence[str]) -> Matches:
        """The detections in some of the images, ready to be counted."""
        rules = self.summary.rules
        return compare_boxes(
            [self.boxes(case) for case in cases],
            [self.summary.truths[case] for case in cases],
            self.summary.categories,
            excluded=rules.excluded or (),
            threshold=rules.threshold,
            criterion=rules.criterion,
        )

    def boxes(self, case: str, cut: float = 0.0) -> Boxes:
        """The detections in an image from a score on, by falling score."""
        found = self.found.images[case].found
        return found.only(np.flatnonzero(found.scores >= cut))

    def balance(self, case: str) -> tuple[int, int, int]:
        """Boxes found, missed, and false detections in an image at :attr:`cut`, classes told apart."""
        truth, rules = self.summary.truths[case], self.summary.rules
        found = self.boxes(case, self.cut)
        matched = match_froc([found], [truth], None, threshold=rules.threshold, criterion=rules.criterion)
        true = int(np.count_nonzero(matched.hit == TRUE))
        false = int(np.count_nonzero(matched.hit == FALSE))
        return true, len(truth) - true, false


@dataclass(frozen=True)
class DetectionDifferences:
    """``first − second`` in every metric: (class or empty, metric) → paired difference."""

    values: Mapping[Key, PairedDifference]

    def of(self, metric: str, part: str = "") -> PairedDifference | None:
        """The difference in one metric; None where it is not defined."""
        found = self.values.get((part, metric))
        return found if found is not None and isfinite(found.mean) else None
