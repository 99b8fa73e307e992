"""Validation scores of the folds of a segmentation run, for :mod:`medkd.evaluation.cross_validation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medkd.core.dataset import DatasetDescription
from medkd.core.links import link_or_copy
from medkd.core.paths import Root
from medkd.core.patients import patients_now
from medkd.core.run import DATASET_FILE, VALIDATION_SUMMARY
from medkd.evaluation.scoring import warn_of_torn_patients
from medkd.evaluation.segmentation.results import CaseScores, Summary, structure_key, summary_text
from medkd.evaluation.segmentation.scored_from import check_sources
from medkd.evaluation.statistics import finite


class SegmentationFolds:
    """Scores of label maps, case by case: merging them is putting the cases side by side."""

    def load(self, run: Path, fold: int) -> Summary:
        """The fold's summary; what it does not say of structures' names and of patients is the run's
        ``dataset.json``'s, and of patients the raw data set's.
        """
        path, described = run / f"fold_{fold}" / VALIDATION_SUMMARY, run / DATASET_FILE
        if not described.exists():
            return Summary.load(path)
        description = DatasetDescription.load(described)
        patients = {**_patients_now(run), **description.patients}
        return _with_patients(Summary.load(path, description.labels), patients)

    def check(self, run: Path, fold: int) -> None:
        """See that weights, label maps and references are those that were scored, as far as they are there."""
        check_sources(run, fold, complete=False)

    def cases(self, scores: Summary) -> list[str]:
        """File names of the references."""
        return [case.name for case in scores.cases]

    def rules(self, scores: Summary) -> object:
        """Structures, tolerance of NSD, definition of HD95 and further metrics."""
        return scores.structures, scores.nsd_tolerance_mm, scores.hd95_definition, scores.further

    def means(self, scores: Summary) -> dict[str, Any]:
        """Means over the structures and of each of them."""
        structures: dict[str, Any] = {}
        for index, (name, values) in enumerate(scores.structures):
            structures[structure_key(values)] = {"name": name, **_means(scores, index)}
        return {
            "cases": len(scores.cases),
            "counts": scores.counts(),
            "foreground": _means(scores, None),
            "structures": structures,
        }

    def merge(self, run: Path, parts: Mapping[int, Summary]) -> Summary:
        """All cases, sorted by their reference."""
        warn_of_torn_patients(run, {fold: part.patients for fold, part in parts.items()})
        first = next(iter(parts.values()))
        cases: list[CaseScores] = []
        missing: list[str] = []
        for part in parts.values():
            cases += part.cases
            missing += part.missing
        cases.sort(key=lambda case: case.reference_file)
        return Summary(
            cases=tuple(cases),
            nsd_tolerance_mm=first.nsd_tolerance_mm,
            hd95_definition=first.hd95_definition,
            missing=tuple(missing),
            further=first.further,
        )

    def with_extra(self, scores: Summary, extra: Mapping[str, Any]) -> Summary:
        """With further content of the ``"medkd"`` block."""
        return replace(scores, extra={**scores.extra, **extra})

    def save(self, scores: Summary, folder: Path) -> None:
        """Write ``summary.json``, and let the label maps of all folds lie together in ``predictions``."""
        scores.save(folder / "summary.json")
        _gather(folder.parent, scores, folder / "predictions")

    def text(self, scores: Summary) -> str:
        """The table, and below it the mean Dice of each fold."""
        lines = [summary_text(scores)]
        for fold, means in scores.extra["fold_means"].items():
            dice = means["foreground"]["Dice"]
            shown = "–" if dice is None else f"{dice:.4f}"
            lines.append(f"fold {fold}: Dice {shown} over {means['cases']} cases")
        return "\n".join(lines)


def _gather(run: Path, scores: Summary, folder: Path) -> None:
    """The label map of each case by the fold that had not seen it, linked or copied; those of other folds go."""
    names = {Path(case.prediction_file).name for case in scores.cases}
    for old in folder.glob("*"):
        if old.name not in names:
            old.unlink()
    for fold in scores.extra["folds"]:
        place = run / f"fold_{fold}" / VALIDATION_SUMMARY.parent
        for name in names:
            link_or_copy(place / name, folder / name)


def _patients_now(run: Path) -> Mapping[str, str]:
    """Case → patient as the raw data set says it, perhaps since the run was trained; none where it is not there."""
    base = run.absolute().parent.parent.parent
    raw = Root(base / "raw", base / "preprocessed", base / "results").raw_dataset(run.absolute().parent.name)
    return patients_now(raw)


def _with_patients(summary: Summary, patients: Mapping[str, str]) -> Summary:
    """The summary with the patients of cases that it does not know, by the names of their predictions: those of other
    programs and of earlier versions know none.
    """
    cases = []
    for case in summary.cases:
        patient = case.patient
        for name in _case_ids(Path(case.prediction_file).name):
            patient = patients.get(name) if patient is None else patient
        cases.append(replace(case, patient=patient))
    return replace(summary, cases=tuple(cases))


def _case_ids(file: str) -> list[str]:
    """What the case of a file could be called, the longest first: endings have one dot or more."""
    parts = file.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def _means(scores: Summary, structure: int | None) -> dict[str, float | None]:
    return {metric: finite(scores.interval(metric, structure).mean) for metric in scores.metrics}
