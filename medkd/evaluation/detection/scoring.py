"""Scores of predicted boxes, with rules by their names: the function behind ``medkd_evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medkd.evaluation.detection.folder import evaluate_detection_folder
from medkd.evaluation.detection.results import DetectionSummary, rules_of


def score_boxes(
    predictions: Path,
    references: Path,
    *,
    labels: Sequence[str] | None = None,
    dataset_json: Path | None = None,
    allow_missing: bool = False,
    workers: int | None = None,
    progress: bool = False,
    hit: str = "0.5",
    exclude: Sequence[str] | None = None,
) -> DetectionSummary:
    """Score a ``predictions.json`` against annotations.

    Args:
        predictions: the file, or the folder that holds it.
        references: folder of ``CASE.json`` files, or a raw detection data set.
        labels: the classes to score; None takes all.
        dataset_json: names the classes and patients; None looks beside the annotations.
        allow_missing: count a case without predictions as an image without detections instead of refusing.
        workers: takes no part, all images are scored at once.
        progress: takes no part.
        hit: what finds a box for FROC: an intersection over union, or ``centre``.
        exclude: classes to leave out of a second mean and of FROC; None is ``text``, where there is such a class.

    Raises:
        DataError: predictions or references are missing (all are named), or they do not fit together.
    """
    rules = rules_of(str(hit), None if exclude is None else tuple(exclude))
    return evaluate_detection_folder(
        Path(predictions),
        Path(references),
        dataset_json=dataset_json,
        classes=labels,
        allow_missing=allow_missing,
        rules=rules,
    )
