"""Scores of a folder of label maps, with the structures' names found where they are: the function behind
``medkd_evaluate``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.files import read_json
from medkd.core.labels import LabelSpec
from medkd.core.limits import option_name
from medkd.core.run import DATASET_FILE
from medkd.core.serial import from_data, to_data
from medkd.core.settled import SETTINGS_FILE
from medkd.evaluation.scoring import ScoringRequest, description_near
from medkd.evaluation.segmentation import legacy as legacy_tables
from medkd.evaluation.segmentation.cases import DEFAULT_TOLERANCE_MM
from medkd.evaluation.segmentation.folder import evaluate_folder
from medkd.evaluation.segmentation.metrics import HausdorffDefinition
from medkd.evaluation.segmentation.results import FURTHER, METRICS, Metric, Summary, summary_text

_log = logging.getLogger(__name__)

POSTPROCESSING = "postprocessing"
"""Key of ``predict_settings.json``, and of a summary's ``extra``."""


def score_label_maps(
    request: ScoringRequest,
    *,
    file_ending: str | None = None,
    nsd_tolerance: float = DEFAULT_TOLERANCE_MM,
    hd95: HausdorffDefinition = "max",
    metrics: Sequence[str] = (),
    legacy: Sequence[float] | None = None,
) -> Summary:
    """Score ``predictions/CASE.nii.gz`` against ``references/CASE.nii.gz``.

    Args:
        request: what to score.
        file_ending: of both; None is that of ``dataset.json``, else ``.nii.gz``.
        nsd_tolerance: of the normalised surface distance, in mm.
        hd95: which definition.
        metrics: further ones beside Dice, IoU, HD95 and NSD: ``ASD``, ``ASSD``.
        legacy: beside the correct scores, those of ACF-BCKD's tables; empty for voxels of the files, or their size
            (Z, Y, X) in mm.

    Raises:
        DataError: the labels have no names, files are missing or do not fit together, or a setting is of another form.
    """
    structures, described_ending = _structures(request)
    ending = file_ending or described_ending
    if not ending.startswith("."):
        raise DataError(
            f"{option_name('file_ending')}: expected an ending with its dot, for example .nii.gz, found {ending!r:.80}."
        )
    further = _further_metrics(metrics)
    if legacy is not None:
        _check_legacy(legacy, request.allow_missing)
    summary = evaluate_folder(
        request.predictions,
        request.references,
        structures,
        file_ending=ending,
        workers=request.workers,
        nsd_tolerance_mm=nsd_tolerance,
        definition=hd95,
        further=further,
        patients=_patients(request),
        allow_missing=request.allow_missing,
        progress=request.progress,
    )
    summary = replace(summary, extra={**summary.extra, **_postprocessed(request.predictions)})
    if legacy is None:
        return summary
    scores = legacy_tables.legacy_scores(
        request.predictions,
        request.references,
        structures,
        [case.name.removesuffix(ending) for case in summary.cases],
        file_ending=ending,
        voxel_mm=list(legacy) or None,
        workers=request.workers or 1,
    )
    return replace(summary, extra={**summary.extra, legacy_tables.KEY: to_data(scores)})


def scores_text(summary: Summary) -> str:
    """A summary as tables; the legacy scores first, where there are any. Below it, what became of the label maps."""
    found = summary.extra.get(legacy_tables.KEY)
    text = summary_text(summary)
    steps = summary.extra.get(POSTPROCESSING)
    if isinstance(steps, list):
        text = f"{text}\npost-processing: {', '.join(map(str, steps)) or 'none'}"
    if found is None:
        return text
    old = from_data(legacy_tables.LegacyScores, found, legacy_tables.KEY)
    return f"{old.text()}\n{text}"


def _further_metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """Those that must be asked for among the named ones; the others are always there."""
    known = {metric.lower(): metric for metric in (*METRICS, *FURTHER)}
    unknown = [name for name in names if name.lower() not in known]
    if unknown:
        raise DataError(
            f"{option_name('metrics')}: expected names among {', '.join(known.values())}, found {', '.join(unknown)}."
        )
    asked = {known[name.lower()] for name in names}
    return tuple(metric for metric in FURTHER if metric in asked)


def _postprocessed(predictions: Path) -> dict[str, list[str]]:
    """Of which structures only the largest component was kept, where ``medkd_predict`` says it."""
    file = predictions / SETTINGS_FILE
    if not file.exists():
        return {}
    try:
        settings = read_json(file)
    except DataError as error:  # which says nothing against the label maps
        _log.warning("%s", error)
        return {}
    steps = settings.get(POSTPROCESSING) if isinstance(settings, dict) else None
    if not isinstance(steps, list):
        return {}  # of an older version, which had none
    return {POSTPROCESSING: [f"largest component of {name}" for name in steps]}


def _check_legacy(legacy: Sequence[float], allow_missing: bool) -> None:
    if len(legacy) not in (0, 3) or min(legacy, default=1) <= 0 or allow_missing:
        names = f"{option_name('legacy')} takes no value or three voxel sizes in mm (Z Y X), and no"
        raise DataError(f"{names} {option_name('allow_missing')}.")


def _patients(request: ScoringRequest) -> Mapping[str, str]:
    """Case → patient, as ``dataset.json`` says it: the one that is given, else that of the references, which are the
    data set's, else that of the predictions.
    """
    near = (description_near(request.references), description_near(request.predictions))
    for file in near if request.dataset_json is None else (request.dataset_json,):
        if file is None:
            continue
        try:
            found = DatasetDescription.load(file).patients
        except DataError as error:  # which says nothing against the label maps
            _log.warning("intervals do not know whose scans the cases are: %s", error)
            continue
        if found:
            return found
    return {}


def _structures(request: ScoringRequest) -> tuple[LabelSpec, str]:
    """The labels, and the ending of their files."""
    if request.labels is not None:
        if not request.labels:
            expected = "expected names joined by commas, for example liver,spleen; found none"
            raise DataError(f"{option_name('labels')}: {expected}.")
        return LabelSpec.from_names(list(request.labels)), ".nii.gz"
    found = request.dataset_json or description_near(request.predictions, request.references)
    if found is None:
        raise DataError(
            f"No {DATASET_FILE} beside the predictions or references; give {option_name('dataset_json')}, or the names "
            f"as {option_name('labels')}."
        )
    description = DatasetDescription.load(found)
    others = None if request.dataset_json else description_near(request.references)
    if others is not None and not others.samefile(found):
        _check_alike(found, description.labels, others)
    return description.labels, description.file_ending


def _check_alike(file: Path, labels: LabelSpec, others: Path) -> None:
    """The label values of predictions and references mean the same.

    Raises:
        DataError: they do not.
    """
    try:
        theirs = _meanings(DatasetDescription.load(others).labels)
    except DataError as error:  # as of something else that lies in the parent folder
        _log.warning("nobody compared what the labels of the references mean: %s", error)
        return
    ours = _meanings(labels)
    differing = [name for name in (*ours, *theirs) if ours.get(name) != theirs.get(name)]
    if differing:
        name = differing[0]
        raise DataError(
            f"The labels of the predictions and of the references differ: '{name}' is {ours.get(name, 'nothing')} in "
            f"{file} and {theirs.get(name, 'nothing')} in {others}; where only names differ, say which file holds for "
            f"both by {option_name('dataset_json')}, else bring the label maps to the same values."
        )


def _meanings(labels: LabelSpec) -> dict[str, str]:
    """Name → label values, whatever the spelling and order; of the ignored voxels, too."""
    found = {" ".join(name.casefold().split()): values for name, values in labels.foreground}
    if labels.ignore is not None:
        found["ignore"] = (labels.ignore,)
    return {name: " or ".join(map(str, sorted(values))) for name, values in found.items()}
