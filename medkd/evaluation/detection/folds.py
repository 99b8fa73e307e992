"""Validation detections and scores of the folds of a detector, for :mod:`medkd.evaluation.cross_validation`.

The scores of different folds are ranked together, as if one detector had made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medkd.core.boxes import BoxAnnotation
from medkd.core.errors import DataError
from medkd.core.run import VALIDATION_SUMMARY
from medkd.evaluation.detection.folder import References, evaluate_detections
from medkd.evaluation.detection.predictions import Boxes, DetectionPredictions, ImagePredictions
from medkd.evaluation.detection.results import DetectionSummary, summary_text
from medkd.evaluation.detection.scored_from import check_sources
from medkd.evaluation.scored_from import KEY
from medkd.evaluation.scoring import warn_of_torn_patients
from medkd.evaluation.statistics import finite

_MEANS = ("AP", "AP50")


@dataclass(frozen=True)
class FoldDetections:
    """The validation detections of some folds, and their scores."""

    found: DetectionPredictions
    summary: DetectionSummary


class DetectionFolds:
    """Scores of boxes: of several folds they are computed anew from all detections."""

    def load(self, run: Path, fold: int) -> FoldDetections:
        """The fold's detections and their scores.

        Raises:
            DataError: a file is missing or damaged, or an image was scored whose detections are not there.
        """
        path = run / f"fold_{fold}" / VALIDATION_SUMMARY
        part = FoldDetections(DetectionPredictions.load(path.parent), DetectionSummary.load(path))
        lost = [case for case in part.summary.truths if case not in part.found.images]
        if lost:
            raise DataError(f"{path}: the images {', '.join(lost)} have no detections; validate fold {fold} anew.")
        return part

    def check(self, run: Path, fold: int) -> None:
        """See that weights, detections and annotations are those that were scored, as far as they are there."""
        check_sources(run, fold)

    def cases(self, scores: FoldDetections) -> Sequence[str]:
        """The images."""
        return list(scores.summary.truths)

    def rules(self, scores: FoldDetections) -> object:
        """Classes and rules of a hit."""
        return scores.summary.categories, scores.summary.rules

    def means(self, scores: FoldDetections) -> dict[str, Any]:
        """Average precision."""
        values = {metric: finite(scores.summary.value(metric).mean) for metric in _MEANS}
        count = len(scores.summary.truths)
        return {**values, "cases": count, "images": count}

    def merge(self, run: Path, parts: Mapping[int, FoldDetections]) -> FoldDetections:
        """All detections, scored together; the scores of a single fold are kept as they were read."""
        warn_of_torn_patients(run, {fold: part.summary.patients for fold, part in parts.items()})
        first = next(iter(parts.values())).summary
        images: dict[str, ImagePredictions] = {}
        annotations: dict[str, BoxAnnotation] = {}
        patients: dict[str, str] = {}
        for part in parts.values():
            for case in part.summary.truths:
                images[case] = part.found.images[case]
            annotations |= _annotations(part)
            patients |= part.summary.patients
        together = DetectionPredictions(first.categories, dict(sorted(images.items())))
        if len(parts) == 1:
            extra = {key: value for key, value in first.extra.items() if key != KEY}  # which is the fold's own
            return FoldDetections(together, replace(first, extra=extra))
        references = References(run, annotations, first.categories, patients)
        summary = evaluate_detections(together, references, classes=first.categories, rules=first.rules)
        return FoldDetections(together, summary)

    def with_extra(self, scores: FoldDetections, extra: Mapping[str, Any]) -> FoldDetections:
        """With further content of ``summary.json``."""
        summary = scores.summary
        return replace(scores, summary=replace(summary, extra={**summary.extra, **extra}))

    def save(self, scores: FoldDetections, folder: Path) -> None:
        """Write ``predictions.json`` and ``summary.json``."""
        scores.found.save(folder)
        scores.summary.save(folder / "summary.json")

    def text(self, scores: FoldDetections) -> str:
        """The table, and below it the average precision of each fold."""
        lines = [summary_text(scores.summary)]
        for fold, means in scores.summary.extra["fold_means"].items():
            shown = []
            for metric in _MEANS:
                value = means[metric]
                shown.append(f"{metric} –" if value is None else f"{metric} {value:.4f}")
            lines.append(f"fold {fold}: {', '.join(shown)} over {means['images']} images")
        return "\n".join(lines)


def _annotations(part: FoldDetections) -> dict[str, BoxAnnotation]:
    """The reference boxes that a fold was scored against."""
    result = {}
    for case, truth in part.summary.truths.items():
        image = part.found.images[case]
        boxes, names = _drawn(truth, part.summary.categories)
        ignored, ignored_names = _drawn(truth.ignored, part.summary.categories)
        result[case] = BoxAnnotation(
            width=image.width,
            height=image.height,
            boxes=boxes,
            names=names,
            ignored=ignored,
            ignored_names=ignored_names,
        )
    return result


def _drawn(boxes: Boxes | None, categories: Sequence[str]) -> tuple[tuple[tuple[float, ...], ...], tuple[str, ...]]:
    """Corners and names of boxes; none of None."""
    if boxes is None:
        return (), ()
    return tuple(map(tuple, boxes.boxes.tolist())), tuple(categories[kind] for kind in boxes.classes)
