"""Training one student with several methods at once, for every task that can."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from medkd.core.errors import (
    MedkdError,
    MethodError,
    RunError,
    SomeFailedError,
    first_line,
    ran_out_of_memory,
)
from medkd.core.limits import option_name
from medkd.training.inputs import check_finished, is_finished
from medkd.training.job import method_names
from medkd.training.lock import fold_lock
from medkd.training.options import RunOptions
from medkd.training.ranks import refuse_several
from medkd.training.run import (
    AnyJob,
    AnyTask,
    begin_lesson,
    find_teacher,
    finish,
    make_job,
    prepare_lesson,
    read_fold,
    rehearsed,
)

_log = logging.getLogger(__name__)


def train_side_by_side(
    task: AnyTask,
    dataset: str | int,
    teacher: str,
    student: str,
    methods: Sequence[str],
    fold: int | str,
    options: RunOptions | None = None,
) -> list[Path]:
    """:func:`~medkd.training.run.train_distill` with several methods at once, which share batches and the teacher's
    pass.

    Every method has the run folder, the files and the weights that it would have alone. One that fails does not stop
    the others.

    Args:
        task: of the data set.
        dataset: number or full name.
        teacher: as for :func:`~medkd.training.run.train_distill`.
        student: registry name.
        methods: each as for :func:`~medkd.training.run.train_distill`.
        fold: 0-4 or ``all``.
        options: of the task's own kind; of the methods' parameters each method gets its own.

    Returns:
        The fold folders, in the order of the methods.

    Raises:
        RunError: the task cannot, several processes train together, a tracker is asked for, or the methods' budgets
            differ.
        SomeFailedError: one of them failed in training; the others are finished.
        MedkdError: whatever would be refused of any of them alone; nothing was trained then.
    """
    jobs = _jobs(task, dataset, teacher, student, methods, fold, options)
    with ExitStack() as locks:
        for job in jobs:
            locks.enter_context(fold_lock(job.folder))
        return _fit_and_finish(task, jobs)


def dry_run_side_by_side(
    task: AnyTask,
    dataset: str | int,
    teacher: str,
    student: str,
    methods: Sequence[str],
    fold: int | str,
    options: RunOptions | None = None,
) -> list[str]:
    """What :func:`train_side_by_side` would do and need, method by method; the arguments are the same.

    Raises:
        MedkdError: whatever the training itself would refuse.
    """
    lines: list[str] = []
    for job in _jobs(task, dataset, teacher, student, methods, fold, options, write=False):
        lines += rehearsed(task, job).lines()
    return lines


def _jobs(
    task: AnyTask,
    dataset: str | int,
    teacher: str,
    student: str,
    methods: Sequence[str],
    fold: int | str,
    options: RunOptions | None,
    *,
    write: bool = True,
) -> list[AnyJob]:
    """A job per method, after everything that can be refused; ``write`` prepares a data set that has no plan yet."""
    options = _checked_options(task, methods, options)
    parameters = parameters_per_method(options.method_parameters, methods)
    model = find_teacher(task, dataset, teacher, options)
    if write:
        task.prepare_like(dataset, model, options)
    jobs = []
    for method, own in zip(methods, parameters, strict=True):
        data = read_fold(task, dataset, fold, replace(options, method_parameters=own), write=write)
        jobs.append(make_job(task, data, student, model, method))
    _check_equal_budgets(jobs)
    return jobs


def _checked_options(task: AnyTask, methods: Sequence[str], options: RunOptions | None) -> RunOptions:
    """The options, where they and the task allow several methods at once."""
    refuse_several("Several methods at once")
    task.check_side_by_side()
    options = options or task.options()
    if options.track is not None:
        raise RunError(
            f"{option_name('track')} shows one training at a time, found {len(methods)} methods; leave it out, or "
            "train one after another."
        )
    return options


def _fit_and_finish(task: AnyTask, jobs: Sequence[AnyJob]) -> list[Path]:
    """Train what is not finished yet, and score what is finished then."""
    for job in jobs:
        check_finished(task, job)
    waiting = [job for job in jobs if not is_finished(job)]
    failed: dict[str, Exception] = {}
    if waiting:
        failed |= task.fit_together(waiting, prepare_lesson, begin_lesson)
    folders = []
    for job in jobs:
        name = job.folder.parent.name
        if name in failed:
            continue
        try:
            folders.append(finish(task, job))
        except (MedkdError, RuntimeError, MemoryError) as error:
            if not _belongs_to_one(error):
                raise
            failed[name] = error
            _log.error("%s could not be scored, the others go on: %s", name, first_line(error))
    if failed:
        raise _failure(failed, folders)
    return folders


def _failure(failed: Mapping[str, Exception], folders: Sequence[Path]) -> SomeFailedError:
    reasons = {name: first_line(error) for name, error in failed.items()}
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    count = len(failed) + len(folders)
    return SomeFailedError(
        f"{len(failed)} of {count} trainings failed, the others are finished ({told}).", reasons, folders
    )


def _belongs_to_one(error: Exception) -> bool:
    """Whether an error is no reason to give up the other methods."""
    return isinstance(error, MedkdError) or ran_out_of_memory(error)


def parameters_per_method(parameters: Mapping[str, Any], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Of ``METHOD.PARAMETER`` → value each method's own.

    Raises:
        MethodError: no method is named, or one twice, or a parameter belongs to none of them.

    >>> parameters_per_method({"kd.weight": 2, "at.weight": 3}, ["kd", "at+dml"])
    [{'kd.weight': 2}, {'at.weight': 3}]
    """
    if not methods:
        raise MethodError("Expected methods to train with, found none; see medkd_list methods.")
    if len(set(methods)) != len(methods):
        raise MethodError(f"Methods side by side must differ, found {', '.join(methods)}; name each once.")
    found = []
    for method in methods:
        names = method_names(method)
        found.append({key: value for key, value in parameters.items() if key.partition(".")[0] in names})
    foreign = [key for key in parameters if not any(key in own for own in found)]
    if foreign:
        raise MethodError(
            f"Setting '{foreign[0]}' belongs to none of {', '.join(methods)}; write METHOD.PARAMETER=VALUE with one of "
            "them."
        )
    return found


def _check_equal_budgets(jobs: Sequence[AnyJob]) -> None:
    first = jobs[0]
    for job in jobs[1:]:
        if job.run.budget != first.run.budget:
            raise RunError(
                f"{first.run.method} and {job.run.method} are trained with different budgets here ({first.run.budget} "
                f"and {job.run.budget}), as their protocol says; train them one after another."
            )
