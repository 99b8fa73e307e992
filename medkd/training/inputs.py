"""Whether a fold that was begun, or is finished, was made from what is there now; see :mod:`medkd.core.made_from`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medkd.core.errors import OutdatedError
from medkd.core.made_from import changed_cases, changed_inputs, changed_weights, outdated, renew_inputs
from medkd.core.run import FINAL, SPLIT_FILE
from medkd.core.splits import FoldRecord
from medkd.training.job import Job, Lesson, TrainingTask
from medkd.training.ranks import current
from medkd.training.run_folder import follow_teachers


def is_finished(job: Job[Any, Any, Any]) -> bool:
    """Whether the fold is only to be continued and was trained to its end."""
    return job.options.resume and (job.folder / FINAL).exists()


def check_inputs(folder: Path, configuration: str, weights: Callable[[], Sequence[str]]) -> None:
    """See to it that what a fold was made from is still what it would be made from.

    Args:
        folder: fold folder; one without weights may begin with anything.
        configuration: of the run.
        weights: gives a hash of each network that teaches, now.

    Raises:
        OutdatedError: a teacher, or preprocessed cases that it was trained on, are others by now.
    """
    if not any(folder.rglob("*.pt")):
        return
    why = changed_weights(folder)
    if why is not None and (known := FoldRecord.load(folder / SPLIT_FILE).teacher_weights):
        why = None if set(weights()) == set(known) else why  # the same networks in another file
    why = why or changed_cases(folder, configuration)
    if why is not None:
        raise OutdatedError(f"{why}; restore them, or give --overwrite to start anew, or --tag TEXT to keep both.")


def check_finished(task: TrainingTask[Any, Any, Any], job: Job[Any, Any, Any]) -> None:
    """See to it that a fold that is not trained again was made from what is there now.

    Raises:
        OutdatedError: it was not.
    """
    if is_finished(job) and current().first:
        follow_teachers(job.folder.parent, job.run)
    if not is_finished(job) or outdated(job.folder, job.configuration) is None:
        return
    if changed_inputs(job.folder, job.configuration) is not None:  # the networks themselves are loaded only now
        check_inputs(job.folder, job.configuration, task.build(job).teacher_weights)
    if current().first:
        renew_inputs(job.folder, job.configuration)


def weights_files(job: Job[Any, Any, Any], lesson: Lesson, *, taught: bool) -> list[Path]:
    """The files with the weights that a fold is made from.

    Args:
        job: what is trained.
        lesson: its networks.
        taught: whether a teacher takes part, with what it says or with its weights.
    """
    start = job.run.backbone_weights if job.run.weights is None else job.run.weights.file
    found = [] if start is None else [Path(start)]
    if taught and job.teacher is not None:
        for teacher in lesson.teachers or [job.teacher]:
            found += teacher.model.weights_files(teacher.fold)
    return found
