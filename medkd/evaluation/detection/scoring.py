"""Scores of predicted boxes, with rules by their names: the function behind ``medkd_evaluate``."""

from __future__ import annotations

from collections.abc import Sequence

from medkd.evaluation.detection.folder import evaluate_detection_folder
from medkd.evaluation.detection.results import DetectionSummary, rules_of
from medkd.evaluation.scoring import ScoringRequest


def score_boxes(request: ScoringRequest, *, hit: str = "0.5", exclude: Sequence[str] | None = None) -> DetectionSummary:
    """Score a ``predictions.json`` against annotations.

    Args:
        request: what to score.
        hit: what finds a box for FROC: an intersection over union, or ``centre``.
        exclude: classes to leave out of a second mean and of FROC; None is ``text``, where there is such a class.

    Raises:
        DataError: predictions or references are missing (all are named), or they do not fit together.
    """
    return evaluate_detection_folder(
        request.predictions,
        request.references,
        dataset_json=request.dataset_json,
        classes=request.labels,
        allow_missing=request.allow_missing,
        rules=rules_of(str(hit), None if exclude is None else tuple(exclude)),
    )
