"""Training a network alone or with a teacher, and saying what that would do, for every task."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError, RunError
from medkd.core.kind_of_splits import are_outdated
from medkd.core.meaning import check_meaning
from medkd.core.paths import Root
from medkd.core.patients import known_patients, torn_patients
from medkd.core.run import DATASET_FILE, PLANS_FILE
from medkd.core.splits import Split, find_split
from medkd.core.teachers import Untrained
from medkd.models.base import ModelFolder, find_model
from medkd.models.guard import Teacher, choose_any_fold, choose_teacher
from medkd.training.inputs import check_finished, check_inputs, is_finished, weights_files
from medkd.training.job import FoldData, Job, Lesson, TrainingTask
from medkd.training.loading import explained
from medkd.training.lock import fold_lock
from medkd.training.options import RunOptions
from medkd.training.plausibility import check_arithmetic, doubt, warn_of_a_poor_teacher
from medkd.training.ranks import current, one_after_another, own_device, together
from medkd.training.run_folder import (
    SharedFacts,
    check_cases,
    check_teachers,
    find_run,
    open_fold,
    run_name,
    start_fold,
    validation_cases,
)
from medkd.training.speed import check_speed
from medkd.training.tracking import Tracking, check_tracker, told

AnyTask = TrainingTask[Any, Any, Any]
AnyJob = Job[Any, Any, Any]
_OTHERWISE = (
    "The processes that train together have different settings or data; give every one the same command and the same "
    "--root, on a file system that all see."
)


def train(task: AnyTask, dataset: str | int, network: str, fold: int | str, options: RunOptions | None = None) -> Path:
    """Train a network alone on one fold and score it on the fold's validation cases.

    Args:
        task: of the data set.
        dataset: number or full name.
        network: registry name.
        fold: 0-4 or ``all``.
        options: of the task's own kind; None is the defaults.

    Returns:
        The fold folder.

    Raises:
        LeakError: the weights that it starts from have seen validation cases of this fold.
        MedkdError: anything about the data, the plan or the settings that does not fit.
    """
    options = options or task.options()
    check_tracker(options.track)
    with together(task, options):
        return _train(task, read_fold(task, dataset, fold, options), network)


def train_distill(
    task: AnyTask,
    dataset: str | int,
    teacher: str,
    student: str,
    method: str,
    fold: int | str,
    options: RunOptions | None = None,
) -> Path:
    """Train a student with a teacher on one fold and score it on the fold's validation cases.

    Args:
        task: of the data set.
        dataset: number or full name.
        teacher: a network with a finished run for this data set, a run's name, or the folder of a model, see
            :func:`medkd.models.base.find_model`. A data set without a plan is prepared like an imported teacher.
        student: registry name.
        method: registry name, or several joined by ``+``.
        fold: 0-4 or ``all``.
        options: of the task's own kind; None is the defaults.

    Returns:
        The fold folder.

    Raises:
        LeakError: the teacher, or the weights that the student starts from, have seen validation cases of this fold.
        MedkdError: anything else that does not fit.
    """
    options = options or task.options()
    check_tracker(options.track)
    with together(task, options):
        model = find_teacher(task, dataset, teacher, options)
        with one_after_another(options.device):
            task.prepare_like(dataset, model, options)
        return _train(task, read_fold(task, dataset, fold, options), student, model, method)


def dry_run(
    task: AnyTask,
    dataset: str | int,
    network: str,
    fold: int | str,
    options: RunOptions | None = None,
    teacher: str | Untrained | None = None,
    method: str = "none",
) -> list[str]:
    """What :func:`train`, or with a teacher :func:`train_distill`, would do and need, line by line; nothing is
    computed, written or started.

    Args:
        task: of the data set.
        dataset: number or full name, of a data set that is planned and preprocessed.
        network: registry name of the network, or of the student.
        fold: 0-4 or ``all``.
        options: of the task's own kind; None is the defaults.
        teacher: as for :func:`train_distill`, or one that is not trained yet; None for a network alone.
        method: as for :func:`train_distill`.

    Raises:
        NotImplementedError: the task cannot tell of a teacher that is not trained yet.
        MedkdError: whatever the training itself would refuse, :class:`~medkd.core.errors.LeakError` included.
    """
    return rehearse(task, dataset, network, fold, options, teacher, method)[1].lines()


def rehearse(
    task: AnyTask,
    dataset: str | int,
    network: str,
    fold: int | str,
    options: RunOptions | None = None,
    teacher: str | Untrained | None = None,
    method: str = "none",
) -> tuple[AnyJob, Lesson]:
    """The job of a training and its networks, without weights where shapes suffice; see :func:`dry_run`."""
    options = options or task.options()
    check_tracker(options.track)
    model = None
    if isinstance(teacher, Untrained):
        own = teacher.network, fold, teacher.options, teacher.teacher, teacher.method
        model = task.untrained(rehearse(task, dataset, *own)[0])
    elif teacher is not None:
        model = find_teacher(task, dataset, teacher, options)
    data = read_fold(task, dataset, fold, options, write=False)
    job = make_job(task, data, network, model, None if model is None else method)
    return job, rehearsed(task, job)


def rehearsed(task: AnyTask, job: AnyJob) -> Lesson:
    """The networks of a job, without weights where shapes suffice; what it would not go on with is refused."""
    lesson = task.build(job, weightless=True)
    if is_finished(job):
        check_inputs(job.folder, job.configuration, lesson.teacher_weights)
    elif not job.options.overwrite:
        _check_goes_on(job, lesson)
    return lesson


def find_teacher(task: AnyTask, dataset: str | int, teacher: str, options: RunOptions) -> ModelFolder[Any]:
    """The model that a TEACHER argument names, see :func:`medkd.models.base.find_model`."""
    root = Root.resolve(options.root)
    results, configuration = root.results / root.dataset_name(dataset), task.configuration(options)
    found = [find_model(text, results, configuration, task.name) for text in (teacher, *task.further_teachers(options))]
    return found[0] if len(found) == 1 else task.together(found)


def read_fold(
    task: AnyTask, dataset: str | int, fold: int | str, options: RunOptions, *, write: bool = True
) -> FoldData[Any, Any, Any]:
    """The data of a fold.

    Args:
        task: of the data set.
        dataset: number or full name.
        fold: 0-4 or ``all``.
        options: of the task's own kind.
        write: keep new splits, where there are none yet.

    Raises:
        MedkdError: the data set is not prepared, is one for another task, or there is no such fold.
    """
    if not isinstance(options, task.options):
        raise RunError(f"Training for {task.name} takes {task.options.__name__}, found {type(options).__name__}.")
    root = Root.resolve(options.root)
    name = root.dataset_name(dataset)
    folder = root.preprocessed / name
    plan, configuration = task.read_plan(folder / PLANS_FILE), task.configuration(options)
    description = DatasetDescription.load(folder / DATASET_FILE)
    store = task.open_store(folder, plan, configuration)
    labelled, without_labels = store.cases(), task.unlabelled(store)
    cases = labelled or list(without_labels)
    if not cases:
        raise DataError(
            f"{name} has no preprocessed {task.noun} for {configuration}; run medkd_plan_and_preprocess -d {name}."
        )
    raw = root.raw_dataset(name)
    description = replace(description, patients=known_patients(description, raw, {*cases, *without_labels}))
    patients = description.patients
    anew = are_outdated(folder, raw, fold, cases, without_labels, write=write)
    split = find_split(folder, fold, cases, patients, raw, write=write, anew=anew, labelled=bool(labelled))
    torn = torn_patients(fold, split.train, split.val, patients)
    if torn and options.strict:  # otherwise it was told with those of the other folds
        doubt(f"{torn.text()}; train with splits that keep patients together", strict=True)
    if not labelled:
        split = Split((), split.val, split.train)
    return FoldData(
        dataset=name,
        root=root,
        plan=task.adapt_plan(plan, store, options),
        description=description,
        configuration=configuration,
        store=store,
        split=split,
        fold=str(fold),
        options=options,
        device=own_device(options.device),
    )


def make_job(
    task: AnyTask,
    data: FoldData[Any, Any, Any],
    network: str,
    model: ModelFolder[Any] | None = None,
    method: str | None = None,
) -> AnyJob:
    """Everything that can be refused before a network is built.

    Args:
        task: of the data.
        data: of the fold.
        network: registry name of what is trained.
        model: that is going to teach; None for a network alone.
        method: with which it teaches.

    Raises:
        LeakError: the model, or the weights that training starts from, have seen validation cases of this fold.
        MedkdError: anything else that does not fit.
    """
    data = task.follow(data, network, method, None if model is None else model.network_name)
    task.check(data, network, method)
    data = task.start(data, network)
    data = replace(data, split=task.with_unlabelled(data, method))
    if model is not None:
        task.check_teacher(data, model, method)
    check_meaning(data.raw, data.description, data.dataset)
    task.check_store(data)
    _warn_of_absent_structures(task, data)
    teacher = None
    if model is not None:
        teacher = _choose(model, data)
        warn_of_a_poor_teacher(teacher, task, strict=data.options.strict)
    seen = task.seen_at_start(data) | (teacher.seen if teacher else frozenset())
    run = task.describe(data, network, method, teacher)
    check_speed(run.speed, data.device, current().count)
    check_arithmetic(run.precision, data.device, strict=data.options.strict)
    current().check_batch(run.budget.batch_size)
    label, taught_by = task.network_label(network, data.options), model.name if model else None
    now = task.facts(data.plan, data.description, data.configuration)
    facts = SharedFacts(now, lambda stored: _stored_facts(task, stored, data.configuration))
    name = run_name(label, data.configuration, method, taught_by, data.options.tag)
    path = find_run(data.results, name, data.options.tag, run, facts)
    folder = open_fold(path, data.fold, run, facts, resume=data.options.resume, overwrite=data.options.overwrite)
    return Job(**vars(data), run=run, folder=folder, teacher=teacher, seen=seen)


def begin(job: AnyJob, lesson: Lesson) -> None:
    """Write what is trained into run and fold folder; see :func:`medkd.training.run_folder.start_fold`."""
    teacher_weights = lesson.teacher_weights()
    start_fold(
        job.folder,
        job.run,
        job.plan,
        job.description,
        job.split,
        lesson.seen,
        job.options.overwrite,
        teacher_weights,
        weights_files(job, lesson, taught=bool(teacher_weights)),
    )


def _check_goes_on(job: AnyJob, lesson: Lesson) -> None:
    """What a fold began with must be what it goes on with."""
    check_cases(job.folder, job.split, lesson.seen)
    check_inputs(job.folder, job.configuration, lesson.teacher_weights)
    check_teachers(job.folder, lesson.teacher_weights)


def finish(task: AnyTask, job: AnyJob) -> Path:
    """Score the fold, unless the options say not to, on what it held out when it began; returns its folder."""
    if job.options.validate:
        cases = validation_cases(job.folder)
        _check_still_there(task, job, cases)
        task.validate(job, cases)
    return job.folder


def _check_still_there(task: AnyTask, job: AnyJob, cases: Sequence[str]) -> None:
    """Somebody may have removed preprocessed cases while the fold was trained."""
    lost = sorted(set(cases) - set(job.store.cases()) - set(task.unlabelled(job.store)))
    if lost:
        raise DataError(
            f"{job.dataset} lost {len(lost)} of the {len(cases)} preprocessed cases that fold {job.fold} is judged on, "
            f"for example {lost[0]}; run medkd_plan_and_preprocess -d {job.dataset}, then this command again with "
            "--continue."
        )


def _train(
    task: AnyTask,
    data: FoldData[Any, Any, Any],
    network: str,
    model: ModelFolder[Any] | None = None,
    method: str | None = None,
) -> Path:
    job = make_job(task, data, network, model, method)
    ranks, finished = current(), is_finished(job)
    check_finished(task, job)
    if ranks.first:
        job = replace(job, tracking=Tracking(job.options.track, job.folder, job.dataset))
    ranks.agree(_told(job), job.device, _OTHERWISE)  # and nobody writes before all have looked
    with fold_lock(job.folder) if ranks.first else nullcontext(), told(task, job):
        if not finished:
            _fit(task, job)
        return finish(task, job) if ranks.first else job.folder


def _told(job: AnyJob) -> str:
    """What all processes of a training must have in common."""
    return repr((job.run, job.split, job.options.resume, job.options.overwrite, is_finished(job)))


def _fit(task: AnyTask, job: AnyJob) -> None:
    lesson = task.build(job)
    prepare_lesson(job, lesson)
    begin_lesson(job, lesson)
    with explained(job.folder):
        lesson.fit()
    current().wait(job.device)


def prepare_lesson(job: AnyJob, lesson: Lesson) -> None:
    """All that may be refused, or takes long, before anything of an earlier training is thrown away."""
    if not job.options.overwrite:
        _check_goes_on(job, lesson)
    lesson.prepare()


def begin_lesson(job: AnyJob, lesson: Lesson) -> None:
    """Write what is trained, over what was there."""
    if current().first:
        run = lesson.described(job.run)
        begin(replace(job, run=run), lesson)
        if job.tracking is not None:
            job.tracking.begin(run)


def _choose(model: ModelFolder[Any], data: FoldData[Any, Any, Any]) -> Teacher[Any]:
    """The fold that teaches; where no case has a label, nobody is judged by labels, and any fold may."""
    cases = data.store.cases()
    if not cases:
        return choose_any_fold(model, data.fold, data.split.unlabelled, data.raw)
    return choose_teacher(model, data.fold, data.split, cases, data.raw, data.description.patients)


def _stored_facts(task: AnyTask, path: Path, configuration: str) -> Any:
    plan, description = task.read_plan(path / PLANS_FILE), DatasetDescription.load(path / DATASET_FILE)
    return task.facts(plan, description, configuration)


def _warn_of_absent_structures(task: AnyTask, data: FoldData[Any, Any, Any]) -> None:
    """A structure that is absent should not surprise anybody later."""
    for verb, cases in (("trained", data.split.train), ("judged", data.split.val)):
        absent = set(task.structures(data)) if cases else set()
        for case in cases:
            if not absent:
                break
            absent -= task.structures_of(data, case)
        if absent:
            named = [name for name in task.structures(data) if name in absent]
            doubt(
                f"fold {data.fold} is {verb} without any {task.mark} of {', '.join(named)}; make other splits, or add "
                "cases",
                strict=data.options.strict,
            )
