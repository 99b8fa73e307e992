"""Whether a fold that was trained, or scored, still counts as done."""

from __future__ import annotations

from pathlib import Path

from medkd.core.errors import RunError
from medkd.core.made_from import changed_inputs, outdated
from medkd.core.numbers import whole_number
from medkd.core.run import RUN_FILE, VALIDATION_SUMMARY, RunDescription
from medkd.core.serial import load
from medkd.tasks import task_of_run


def why_not_done(fold: Path, *, plan: bool = False) -> str | None:
    """Why a finished fold does not count: what it was made from, or was scored with, is another by now; None where it
    counts, or nobody knows better.

    Recipes, their tables and compressions all ask here.

    Args:
        fold: ``<root>/results/DATASET/RUN/fold_K`` of a run, or of the scores of a model from elsewhere.
        plan: whether another plan counts, too; a training command says itself whether that matters to it.

    Raises:
        DataError: a file of the run is damaged.
    """
    if not (fold.parent / RUN_FILE).exists():
        return None
    run = load(RunDescription, fold.parent / RUN_FILE)
    return (outdated if plan else changed_inputs)(fold, run.configuration) or why_not_scored(fold)


def why_not_scored(fold: Path) -> str | None:
    """Why the scores of a fold do not count: they belong to other weights, predictions or references; None where they
    count, are not there, or nobody knows better.

    Args:
        fold: as for :func:`why_not_done`.

    Raises:
        DataError: a file of the run is damaged.
    """
    number = whole_number(fold.name.removeprefix("fold_"))
    if number is None or not (fold / VALIDATION_SUMMARY).exists():
        return None
    folds = task_of_run(load(RunDescription, fold.parent / RUN_FILE)).folds
    if folds is None:
        return None
    try:
        folds().check(fold.parent, number)
    except RunError as error:
        return str(error)
    return None
