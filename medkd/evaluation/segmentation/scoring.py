"""Scores of a folder of label maps, with the structures' names found where they are: the function behind
``medkd_evaluate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.core.limits import option_name
from medkd.core.run import DATASET_FILE
from medkd.core.serial import from_data, to_data
from medkd.evaluation.segmentation import legacy as legacy_tables
from medkd.evaluation.segmentation.cases import DEFAULT_TOLERANCE_MM
from medkd.evaluation.segmentation.folder import evaluate_folder
from medkd.evaluation.segmentation.metrics import HausdorffDefinition
from medkd.evaluation.segmentation.results import Summary, summary_text


def score_label_maps(
    predictions: Path,
    references: Path,
    *,
    labels: Sequence[str] | None = None,
    dataset_json: Path | None = None,
    allow_missing: bool = False,
    workers: int | None = None,
    progress: bool = False,
    file_ending: str | None = None,
    nsd_tolerance: float = DEFAULT_TOLERANCE_MM,
    hd95: HausdorffDefinition = "max",
    legacy: Sequence[float] | None = None,
) -> Summary:
    """Score ``predictions/CASE.nii.gz`` against ``references/CASE.nii.gz``.

    Args:
        predictions: folder of predicted label maps.
        references: folder of reference label maps.
        labels: names of the labels 1, 2, …; None takes those of ``dataset_json``.
        dataset_json: names the labels; None looks beside predictions and references, and in their parents.
        allow_missing: count a missing prediction as an empty one instead of refusing.
        workers: threads; None follows from cores and free memory.
        progress: show a progress bar.
        file_ending: of both; None is that of ``dataset_json``, else ``.nii.gz``.
        nsd_tolerance: of the normalised surface distance, in mm.
        hd95: which definition.
        legacy: beside the correct scores, those of ACF-BCKD's tables; empty for voxels of the files, or their size
            (Z, Y, X) in mm.

    Raises:
        DataError: the labels have no names, files are missing or do not fit together, or a setting is of another form.
    """
    structures, ending = _structures(Path(predictions), Path(references), labels, dataset_json)
    ending = file_ending or ending
    if legacy is not None:
        _check_legacy(legacy, allow_missing)
    summary = evaluate_folder(
        Path(predictions),
        Path(references),
        structures,
        file_ending=ending,
        workers=workers,
        nsd_tolerance_mm=nsd_tolerance,
        definition=hd95,
        allow_missing=allow_missing,
        progress=progress,
    )
    if legacy is None:
        return summary
    scores = legacy_tables.legacy_scores(
        Path(predictions),
        Path(references),
        structures,
        [case.name.removesuffix(ending) for case in summary.cases],
        file_ending=ending,
        voxel_mm=list(legacy) or None,
        workers=workers or 1,
    )
    return replace(summary, extra={**summary.extra, legacy_tables.KEY: to_data(scores)})


def scores_text(summary: Summary) -> str:
    """A summary as tables; the legacy scores first, where there are any."""
    found = summary.extra.get(legacy_tables.KEY)
    text = summary_text(summary)
    if found is None:
        return text
    old = from_data(legacy_tables.LegacyScores, found, legacy_tables.KEY)
    return f"{old.text()}\n{text}"


def _check_legacy(legacy: Sequence[float], allow_missing: bool) -> None:
    if len(legacy) not in (0, 3) or min(legacy, default=1) <= 0 or allow_missing:
        names = f"{option_name('legacy')} takes no value or three voxel sizes in mm (Z Y X), and no"
        raise DataError(f"{names} {option_name('allow_missing')}.")


def _structures(
    predictions: Path, references: Path, names: Sequence[str] | None, dataset_json: Path | None
) -> tuple[LabelSpec, str]:
    """The labels, and the ending of their files."""
    if names is not None:
        if not names:
            expected = "expected names joined by commas, for example liver,spleen; found none"
            raise DataError(f"{option_name('labels')}: {expected}.")
        return LabelSpec.from_names(list(names)), ".nii.gz"
    found = dataset_json or _description_near(predictions, references)
    if found is None:
        raise DataError(
            f"No {DATASET_FILE} beside the predictions or references; give {option_name('dataset_json')}, or the names "
            f"as {option_name('labels')}."
        )
    description = DatasetDescription.load(found)
    return description.labels, description.file_ending


def _description_near(predictions: Path, references: Path) -> Path | None:
    for folder in (predictions, references):
        for place in (folder, folder.absolute().parent):
            if (place / DATASET_FILE).exists():
                return place / DATASET_FILE
    return None
