"""Two runs that predict together: out of fold, to be scored, and as a model of their own from then on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medkd.core.dataset import CaseFiles, DatasetDescription, training_cases
from medkd.core.errors import DataError
from medkd.core.files import write_json
from medkd.core.made_with import KnownPredictions
from medkd.core.run import DATASET_FILE, VALIDATION_SUMMARY
from medkd.evaluation.cross_validation import cross_validation_folder, merge_folds, validation_cases
from medkd.evaluation.segmentation.folder import evaluate_folder
from medkd.evaluation.segmentation.folds import SegmentationFolds
from medkd.evaluation.segmentation.postprocessing import find_postprocessing
from medkd.evaluation.segmentation.results import Summary
from medkd.evaluation.segmentation.scored_from import with_sources
from medkd.inference.folder import predict_cases
from medkd.inference.inputs import output_ending
from medkd.inference.made_here import MadeHere
from medkd.inference.opening import open_predictor
from medkd.inference.outputs import Outputs
from medkd.models.several import TEACHERS_FILE


class RunsTogether:
    """Two runs that predict together, in a folder of their own beside them.

    Args:
        first: run folder.
        second: run folder.
        raw: raw data set.
        device: where to predict.
    """

    def __init__(self, first: Path, second: Path, raw: Path, device: str | None) -> None:
        self.runs = (first, second)
        self.folder = first.parent / f"{first.name}+{second.name}"
        self.device = device
        description = DatasetDescription.load(first / DATASET_FILE)
        described = DatasetDescription.load(raw / DATASET_FILE) if (raw / DATASET_FILE).exists() else description
        self.labels = description.labels
        self.patients = {**description.patients, **described.patients}
        self.files = {case.case: case for case in training_cases(raw, described)}
        description.save(self.folder / DATASET_FILE)
        write_json(self.folder / TEACHERS_FILE, {"teachers": [f"../{run.name}" for run in self.runs]})

    def score(self, folds: Sequence[int]) -> Summary:
        """Predict what is missing, and put the folds together."""
        digests: set[str] = set()
        for fold in folds:
            digests |= set(self._validate(fold))
        target = cross_validation_folder(self.folder, folds)
        scoring = SegmentationFolds()
        merged = merge_folds(self.folder, folds, scoring)
        scoring.save(merged, target)
        find_postprocessing(self.folder, folds, target, weights=sorted(digests))
        return merged

    def _validate(self, fold: int) -> tuple[str, ...]:
        """Predict and score the validation cases of a fold; returns the hashes of the networks."""
        predictor = open_predictor(self.folder, [fold], device=self.device, postprocessing=False)
        cases = self._cases(fold)
        target = self.folder / f"fold_{fold}" / VALIDATION_SUMMARY.parent
        known = KnownPredictions(target, predictor.digests(), predictor.circumstances())
        outputs = replace(Outputs.at(target, cases), made=MadeHere(known))
        report = predict_cases(predictor, cases, outputs, resume=True)
        if report.failed:
            raise DataError(next(iter(report.failed.values())))
        references = {case.case: case.label for case in cases if case.label is not None}
        ending = output_ending(cases[0])
        summary = evaluate_folder(target, references, self.labels, prediction_ending=ending, patients=self.patients)
        summary = with_sources(summary, predictor.digests(), predictor.circumstances())
        summary.save(self.folder / f"fold_{fold}" / VALIDATION_SUMMARY)
        return predictor.digests()

    def _cases(self, fold: int) -> list[CaseFiles]:
        """The fold's validation cases, which none of both networks has seen."""
        first, second = (validation_cases(run / f"fold_{fold}") for run in self.runs)
        if set(first) != set(second):
            raise DataError(
                f"{self.runs[0].name} and {self.runs[1].name} do not hold out the same cases in fold {fold}; train "
                "both with the same splits."
            )
        missing = [case for case in first if not self._is_there(case)]
        if missing:
            raise DataError(
                f"The raw scan of {missing[0]} is not there any more ({len(missing)} of {len(first)} cases of fold "
                f"{fold}), which two configurations together need; restore it, or leave the ensembles out."
            )
        return [self.files[case] for case in sorted(first)]

    def _is_there(self, case: str) -> bool:
        return case in self.files and all(image.exists() for image in self.files[case].images)
