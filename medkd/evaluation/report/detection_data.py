"""What the report of a detection data set shows: its runs with detections and scores, and how they compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import isfinite
from pathlib import Path

import numpy as np

from medkd.core.errors import DataError
from medkd.evaluation.cross_validation import merge_folds
from medkd.evaluation.detection.folds import DetectionFolds
from medkd.evaluation.detection.intervals import paired_differences
from medkd.evaluation.detection.matching import TRUE, match_froc
from medkd.evaluation.detection.metrics import Key, Matches, compare_boxes
from medkd.evaluation.detection.predictions import Boxes, DetectionPredictions
from medkd.evaluation.detection.results import DetectionSummary
from medkd.evaluation.report.segmentation_data import RunEntry, baseline_of, gather, teacher_of
from medkd.evaluation.statistics import PairedDifference, groups_of

_NONE = DetectionPredictions((), {})


@dataclass(frozen=True)
class DetectionEntry(RunEntry):
    """A scored run of a detector; a run without scores stays a
    :class:`~medkd.evaluation.report.segmentation_data.RunEntry`.

    Attributes:
        found: detections in the shown folds' validation images.
        scores: their scores.
    """

    found: DetectionPredictions = _NONE
    scores: DetectionSummary = field(default_factory=lambda: DetectionSummary((), {}, {}))

    @property
    def scored(self) -> bool:
        """Always."""
        return True

    @property
    def merit(self) -> float:
        """Average precision; −1 where it is not defined."""
        value = self.scores.value("AP").mean
        return value if isfinite(value) else -1.0

    @cached_property
    def cut(self) -> float:
        """The lowest score at which there is at most one false positive per image; what is shown in pictures reaches
        it.
        """
        curve = self.scores.curves.get("")
        allowed = np.flatnonzero(curve.false_positives <= 1) if curve is not None else np.zeros(0, int)
        value = curve.score[allowed[-1]] if curve is not None and len(allowed) else np.nan
        return float(value) if np.isfinite(value) else 1.0

    def matches(self, cases: Sequence[str]) -> Matches:
        """The detections in some of the images, ready to be counted."""
        rules = self.scores.rules
        found, truths = [self.boxes(c) for c in cases], [self.scores.truths[c] for c in cases]
        excluded = rules.excluded or ()
        return compare_boxes(
            found,
            truths,
            self.scores.categories,
            excluded=excluded,
            threshold=rules.threshold,
            criterion=rules.criterion,
        )

    def boxes(self, case: str, cut: float = 0.0) -> Boxes:
        """The detections in an image from a score on, by falling score."""
        found = self.found.images[case].found
        return found.only(np.flatnonzero(found.scores >= cut))

    def balance(self, case: str) -> tuple[int, int, int]:
        """Boxes found, missed, and false detections in an image at :attr:`cut`, classes told apart."""
        found, truth = self.boxes(case, self.cut), self.scores.truths[case]
        hit = match_froc(
            [found], [truth], None, threshold=self.scores.rules.threshold, criterion=self.scores.rules.criterion
        ).hit[:, 0]
        true = int((hit == TRUE).sum())
        return true, len(truth) - true, int((hit == 0).sum())


@dataclass(frozen=True)
class Comparison:
    """A run against the same student trained alone.

    Attributes:
        differences: (class or empty, metric) → paired difference ``run − alone``.
        gap: the teacher's average precision − that of the student alone; None where there is no teacher among the runs.
    """

    differences: Mapping[Key, PairedDifference]
    gap: PairedDifference | None = None

    def of(self, metric: str, category: str = "") -> PairedDifference | None:
        """The difference in one metric; None where it is not defined."""
        found = self.differences.get((category, metric))
        return found if found is not None and isfinite(found.mean) else None

    @property
    def closed(self) -> float | None:
        """Share of the gap that distillation closed; None where the gap itself is not clear, since dividing by noise
        says nothing.
        """
        gain = self.of("AP")
        return (
            gain.mean / self.gap.mean
            if gain is not None and self.gap is not None and self.gap.clear and self.gap.mean > 0
            else None
        )


def gather_detection(results: Path, fold: int | str | None = None) -> list[RunEntry]:
    """Read all runs of a detection data set, teachers first, then students alone, then distilled ones by falling
    average precision.

    Args:
        results: results folder of the data set.
        fold: the fold to show; None shows the folds that all scored runs have in common.

    Raises:
        RunError: there is no run, or none that has this fold.
        DataError: the files of a run are damaged.
    """
    return gather(results, fold, _with_detections)


def scored_entries(entries: Sequence[RunEntry]) -> list[DetectionEntry]:
    """The runs that have scores."""
    return [e for e in entries if isinstance(e, DetectionEntry)]


def comparisons(entries: Sequence[RunEntry]) -> dict[str, Comparison]:
    """Name of each distilled run → how it compares with the same student alone, over the images that both were scored
    on.

    Raises:
        DataError: two runs were scored with other classes, rules or reference boxes.
    """
    result = {}
    for entry in scored_entries(entries):
        alone, teacher = baseline_of(entry, entries), teacher_of(entry, entries)
        if entry.role != "distilled" or not isinstance(alone, DetectionEntry):
            continue
        differences = compare_runs(entry, alone)
        gap = compare_runs(teacher, alone).get(("", "AP")) if isinstance(teacher, DetectionEntry) else None
        if differences:
            result[entry.name] = Comparison(differences, gap)
    return result


def compare_runs(first: DetectionEntry, second: DetectionEntry) -> dict[Key, PairedDifference]:
    """Paired differences ``first − second`` over the images that both were scored on; nothing where there are none.

    Raises:
        DataError: they were scored with other classes, rules or reference boxes.
    """
    shared = sorted(set(first.scores.truths) & set(second.scores.truths))
    if not shared:
        return {}
    if (first.scores.categories, first.scores.rules) != (second.scores.categories, second.scores.rules):
        raise DataError(f"{first.name} and {second.name} were scored with other classes or rules; validate them anew.")
    return paired_differences(first.matches(shared), second.matches(shared), groups_of(shared, first.scores.patients))


def _with_detections(entry: RunEntry, folds: Sequence[int]) -> RunEntry:
    merged = merge_folds(entry.path, folds, DetectionFolds())
    known = {f.name: getattr(entry, f.name) for f in fields(RunEntry)}
    return DetectionEntry(**known, found=merged.found, scores=merged.summary)
