"""What predictions and runs are worth: scores, cross-validation, times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medkd.api.folds import listed_folds
from medkd.core.errors import DataError
from medkd.core.limits import listed_names
from medkd.core.paths import Root
from medkd.tasks import (
    refuse_foreign,
    refuse_unknown,
    task_of_dataset,
    task_of_predictions,
)

if TYPE_CHECKING:
    from medkd.core.timing import Timings
    from medkd.evaluation.detection.results import DetectionSummary
    from medkd.evaluation.segmentation.results import Summary

Checkpoint = Literal["final", "best"]
_LISTS = {"metrics", "exclude"}
"""Settings of scores that are lists of names."""


def evaluate(
    predictions: str | Path,
    references: str | Path,
    *,
    labels: Sequence[str] | None = None,
    dataset_json: str | Path | None = None,
    allow_missing: bool = False,
    workers: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> Summary | DetectionSummary:
    """Score predicted label maps, or predicted boxes.

    Args:
        predictions: folder with ``CASE.nii.gz``, or with ``predictions.json``.
        references: folder with ``CASE.nii.gz``; for boxes with ``CASE.json``, or a raw data set.
        labels: names of the labels 1, 2, …; for boxes the classes to score. None takes those of ``dataset_json``.
        dataset_json: names the labels; None looks beside predictions and references.
        allow_missing: count a missing prediction as an empty one instead of refusing.
        workers: threads; None follows from cores and free memory.
        progress: show a progress bar.
        settings: segmentation: ``file_ending``, ``nsd_tolerance``, ``hd95``, ``metrics``, ``legacy``, see
            :func:`medkd.evaluation.segmentation.scoring.score_label_maps`; detection: ``hit``, ``exclude``, see
            :func:`medkd.evaluation.detection.scoring.score_boxes`.

    Returns:
        The scores, with a method ``save``.

    Raises:
        DataError: files are missing or do not fit together, a setting belongs to the other task, or a list is none or
            has a name twice.
        RunError: a setting is unknown.
    """
    from medkd.evaluation.scoring import ScoringRequest

    folder = Path(predictions)
    task = task_of_predictions(folder)
    refuse_foreign(task, "evaluate", settings, str(folder), DataError)
    refuse_unknown("evaluate", settings, task.options_of("evaluate"))
    for name in _LISTS & settings.keys():
        settings[name] = listed_names(settings[name], name)
    request = ScoringRequest(
        predictions=folder,
        references=Path(references),
        labels=listed_names(labels, "labels"),
        dataset_json=None if dataset_json is None else Path(dataset_json),
        allow_missing=allow_missing,
        workers=workers,
        progress=progress,
    )
    return task.evaluate(request, **settings)


def cross_validate(
    dataset: str | int,
    run: str,
    *,
    root: str | Path | None = None,
    folds: Sequence[int | str] | None = None,
    postprocessing: bool | None = True,
) -> Any:
    """Put the validation scores of a run's folds together, every case once, and write ``crossval/summary.json``; for
    segmentation also ``postprocessing.json``, which predictions with these folds then follow.

    Args:
        dataset: number or full name.
        run: name of a run.
        root: medkd's folder.
        folds: some folds, whose results go to ``crossval_0_1``; None takes all that were validated.
        postprocessing: False looks for none, and removes what was found for these folds before; None does what was
            asked for these folds the last time, at first looks for it.

    Returns:
        The merged scores.

    Raises:
        RunError: there is no such run, no fold (or not one of these) has been validated, scores belong to other
            weights, predictions or references than those that are there, or post-processing is refused for a run that
            has none.
        DataError: folds were scored differently, or on the same cases.
    """
    from medkd.core.splits import SPLITS_FILE, load_splits
    from medkd.evaluation import cross_validation

    folds = listed_folds(folds)
    place = Root.resolve(root)
    name = place.dataset_name(dataset)
    splits = place.preprocessed / name / SPLITS_FILE
    expected = len(load_splits(splits)) if splits.exists() else cross_validation.FOLDS
    return cross_validation.cross_validate(
        place.results / name / run, expected=expected, only=folds, postprocessing=postprocessing
    )


def score_teacher(
    dataset: str | int,
    teacher: str | Path,
    fold: int | str,
    *,
    root: str | Path | None = None,
    device: str | None = None,
) -> Path:
    """Predict and score a fold's validation cases with a teacher that was trained elsewhere, for the report.

    Args:
        dataset: number or full name.
        teacher: folder of a model from elsewhere.
        fold: 0-4.
        root: medkd's folder.
        device: None picks CUDA where present, else the CPU.

    Returns:
        The fold folder, of what looks like a run without weights.

    Raises:
        RunError: the folder is no such model, or the data set's task has no such teachers.
        LeakError: the teacher has seen validation cases of this fold.
    """
    score = task_of_dataset(dataset, root).column("score_teacher")
    return score(dataset, Path(teacher), fold, root=root, device=device)


def measure(
    dataset: str | int, *, root: str | Path | None = None, runs: Sequence[str] = (), **settings: Any
) -> Timings:
    """Time all trained runs of a data set together, in turns, through the predictor; a report then shows the times.

    Args:
        dataset: number or full name.
        root: medkd's folder.
        runs: names or patterns of runs; all where empty.
        settings: ``repetitions``, ``device`` and ``exports``, folders of exported models.

    Raises:
        RunError: there is no trained run.
    """
    place = Root.resolve(root)
    name = place.dataset_name(dataset)
    time_runs = task_of_dataset(dataset, root).column("measure")
    return time_runs(place.results / name, place.raw_dataset(name), runs=runs, **settings)
