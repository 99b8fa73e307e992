"""The folds of a detector put together: every image found by the fold that never saw it, all scored at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medkd.core.boxes import BoxAnnotation
from medkd.core.errors import DataError, RunError
from medkd.core.files import read_json
from medkd.core.run import RUN_FILE, SPLIT_FILE
from medkd.evaluation.detection.folder import References, evaluate_detections
from medkd.evaluation.detection.predictions import DetectionPredictions
from medkd.evaluation.detection.results import DetectionSummary
from medkd.evaluation.segmentation.cross_validation import FOLDS, VALIDATION_SUMMARY, scored_folds
from medkd.evaluation.segmentation.results import finite

CROSS_VALIDATION = "crossval"
_log = logging.getLogger(__name__)


def cross_validate_detection(run: Path, *, expected: int = FOLDS, output: Path | None = None) -> DetectionSummary:
    """Merge the validation detections of a run's folds, score them, and write ``<run>/crossval/summary.json`` and
    ``predictions.json``.

    The scores of different folds are ranked together, as if one detector had made them.

    Args:
        run: a run folder of a detector.
        expected: number of folds of the splits; folds that are missing are logged and named in the file.
        output: folder to write to, if not there.

    Returns:
        The summary; its ``extra`` holds ``folds``, ``missing_folds`` and ``fold_means``.

    Raises:
        RunError: not a run folder, or no fold has been validated.
        DataError: an image occurs twice, a fold did not score all of its images, or folds were scored differently.
        MedkdError: pycocotools is not installed.
    """
    run = Path(run)
    if not (run / RUN_FILE).exists():
        raise RunError(
            f"{run} is not a medkd run folder (it has no {RUN_FILE}); give a folder <root>/results/DATASET/RUN."
        )
    folds = scored_folds(run)
    if not folds:
        raise RunError(
            f"{run}: no fold_K/{VALIDATION_SUMMARY} found; train at least one fold to its end, which validates it."
        )
    missing = [k for k in range(expected) if k not in folds]
    if missing:
        _log.warning(
            "%s: folds %s are not there; the result covers folds %s only.",
            run.name,
            *(", ".join(map(str, f)) for f in (missing, folds)),
        )
    found, summary = merge_detections(run, folds)
    summary = replace(summary, extra={**summary.extra, "missing_folds": missing})
    found.save(output or run / CROSS_VALIDATION)
    summary.save((output or run / CROSS_VALIDATION) / "summary.json")
    return summary


def merge_detections(run: Path, folds: Sequence[int]) -> tuple[DetectionPredictions, DetectionSummary]:
    """The validation detections of some folds and their scores; those of a single fold are read, not computed anew.

    Raises:
        DataError: see :func:`cross_validate_detection`.
    """
    parts = {k: DetectionSummary.load(run / f"fold_{k}" / VALIDATION_SUMMARY) for k in folds}
    found = {k: DetectionPredictions.load(run / f"fold_{k}" / VALIDATION_SUMMARY.parent) for k in folds}
    first = parts[folds[0]]
    owner: dict[str, int] = {}
    for k, part in parts.items():
        if (part.categories, part.rules) != (first.categories, first.rules):
            raise DataError(
                f"{run}: fold {k} was scored with other classes or rules than fold {folds[0]}; validate them anew."
            )
        _check_complete(run, k, part, found[k])
        for case in part.truths:
            if case in owner:
                raise DataError(
                    f"{run}: {case} is a validation image of fold {owner[case]} and of fold {k}; use disjoint splits."
                )
            owner[case] = k
    means = {
        str(k): {m: finite(part.value(m).mean) for m in ("AP", "AP50")} | {"images": len(part.truths)}
        for k, part in parts.items()
    }
    extra = {"folds": list(folds), "fold_means": means}
    images = {case: found[k].images[case] for case, k in sorted(owner.items())}
    together = DetectionPredictions(first.categories, images)
    if len(folds) == 1:
        return together, replace(first, extra={**first.extra, **extra})
    references = References(
        run,
        _annotations(together, parts),
        first.categories,
        {c: p for part in parts.values() for c, p in part.patients.items()},
    )
    return together, replace(
        evaluate_detections(together, references, classes=first.categories, rules=first.rules), extra=extra
    )


def _annotations(found: DetectionPredictions, parts: dict[int, DetectionSummary]) -> dict[str, BoxAnnotation]:
    """The reference boxes that the folds were scored against."""
    result = {}
    for part in parts.values():
        for case, truth in part.truths.items():
            image, names = found.images[case], tuple(part.categories[k] for k in truth.classes)
            result[case] = BoxAnnotation(
                width=image.width, height=image.height, boxes=tuple(map(tuple, truth.boxes.tolist())), names=names
            )
    return result


def _check_complete(run: Path, fold: int, summary: DetectionSummary, found: DetectionPredictions) -> None:
    folder = run / f"fold_{fold}"
    split = read_json(folder / SPLIT_FILE) if (folder / SPLIT_FILE).exists() else {}
    unscored = [c for c in split.get("val", ()) if c not in summary.truths] + [
        c for c in summary.truths if c not in found.images
    ]
    if unscored:
        raise DataError(
            f"{folder / VALIDATION_SUMMARY}: validation images {', '.join(unscored)} have no score; validate fold "
            f"{fold} anew."
        )
