"""The two training commands as functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medkd.core.dataset import DatasetDescription
from medkd.core.device import pick_device
from medkd.core.errors import DataError, RunError
from medkd.core.paths import Root
from medkd.core.plan import Configuration, Plan
from medkd.core.protocol import TrainingRule
from medkd.core.registry import foreign_modules
from medkd.core.run import DATASET_FILE, FINAL, LATEST, PLANS_FILE, Budget, NetworkSpec, RunDescription, RunFolder
from medkd.core.splits import Split, find_split
from medkd.core.workers import default_workers
from medkd.distillation import METHODS, Distiller, build_method
from medkd.distillation.base import Context
from medkd.models.base import ModelFolder, find_model
from medkd.models.guard import Teacher, allowed_folds, choose_teacher
from medkd.models.like import prepare_if_new
from medkd.models.segmentation import TrainedModel
from medkd.networks import NETWORKS, SegmentationNetwork, build_network, fit_patch
from medkd.networks.inheritance import check_inheritance
from medkd.networks.reference import build_weightless
from medkd.preprocessing.store import CaseStore
from medkd.training.cached import CACHED, cache_targets
from medkd.training.distillation import DistillationTrainer, helper_seed
from medkd.training.dry_run import DryRun, LeakGuard, describe_run
from medkd.training.losses import SegmentationLoss
from medkd.training.options import TrainOptions
from medkd.training.run_folder import SharedFacts, check_cases, open_fold, run_name, start_fold, validation_cases
from medkd.training.segmentation import SegmentationData, SegmentationTrainer
from medkd.training.trainer import LoopSettings
from medkd.training.validation import finish_fold

TEACHER = "teacher"  # value of ``--init``
_SHARED = ("spacing", "normalization", "use_mask_for_norm", "resampling", "crop", "batch_dice")


@dataclass(frozen=True)
class _Job:
    """Everything that is known before a network is built."""

    name: str
    root: Root
    plan: Plan
    description: DatasetDescription
    configuration: Configuration
    store: CaseStore
    split: Split
    fold: str
    options: TrainOptions
    device: torch.device

    @property
    def raw(self) -> Path:
        """The raw data set."""
        return self.root.raw_dataset(self.name)

    @property
    def rule(self) -> TrainingRule:
        """The protocol's settings, else nnU-Net's."""
        return self.plan.protocol.training if self.plan.protocol else TrainingRule()


def train(dataset: str | int, network: str, fold: int | str, options: TrainOptions | None = None) -> Path:
    """Train a network alone on one fold and score it on the fold's validation cases.

    Args:
        dataset: number or full name.
        network: registry name.
        fold: 0-4 or ``all``.
        options: see :class:`~medkd.training.options.TrainOptions`.

    Returns:
        The fold folder.

    Raises:
        MedkdError: anything about the data, the plan or the settings that does not fit.
    """
    job, run, folder, _ = _ready(dataset, network, fold, options or TrainOptions())
    if not _is_finished(folder, job.options):
        torch.manual_seed(job.options.seed)
        trainer = SegmentationTrainer(build_network(run.network), _data(job, run), _settings(job, run), folder)
        _start(job, run, folder, frozenset())
        trainer.fit(resume=job.options.resume)
    return _finish(job, run, folder)


def train_distill(
    dataset: str | int, teacher: str, student: str, method: str, fold: int | str, options: TrainOptions | None = None
) -> Path:
    """Train a student with a teacher on one fold and score it on the fold's validation cases.

    Args:
        dataset: number or full name.
        teacher: a network with a finished run for this data set and configuration, a run's name, a run folder, a model
            folder of nnU-Net v2, or a folder with a ``teacher.json``. A data set without a plan is then prepared like
            the imported teacher.
        student: registry name.
        method: registry name, or several joined by ``+``.
        fold: 0-4 or ``all``.
        options: see :class:`~medkd.training.options.TrainOptions`.

    Returns:
        The fold folder.

    Raises:
        LeakError: the teacher has seen validation cases of this fold.
        MedkdError: anything else that does not fit.
    """
    options = options or TrainOptions()
    model = _find(dataset, teacher, options)
    prepare_if_new(dataset, model, options.root)
    job, run, folder, chosen = _ready(dataset, student, fold, options, model, method)
    assert chosen is not None  # narrowed for the type checker: a teacher was named
    if not _is_finished(folder, job.options):
        torch.manual_seed(job.options.seed)
        network = build_network(run.network)
        lesson = _lesson(job, run, network, chosen)
        _check_cases(job, folder, lesson.seen)
        data = replace(_data(job, run), targets=lesson.predict(job) if run.targets == CACHED else None)
        trainer = DistillationTrainer(network, lesson.distiller, data, _settings(job, run), folder)
        _start(job, run, folder, lesson.seen)
        if run.init == TEACHER and not (job.options.resume and (folder / LATEST).exists()):
            trainer.inherit(lesson.networks[0])
        del lesson  # with cached targets nothing else holds the teacher
        trainer.fit(resume=job.options.resume)
    return _finish(job, run, folder)


def dry_run(
    dataset: str | int,
    network: str,
    fold: int | str,
    options: TrainOptions | None = None,
    teacher: str | None = None,
    method: str = "none",
) -> DryRun:
    """What :func:`train`, or with a teacher :func:`train_distill`, would do and need; nothing is computed, written or
    started.

    Args:
        dataset: number or full name, of a data set that is planned and preprocessed.
        network: registry name of the network, or of the student.
        fold: 0-4 or ``all``.
        options: as for the training.
        teacher: as for :func:`train_distill`; None for a network alone.
        method: as for :func:`train_distill`.

    Raises:
        MedkdError: whatever the training itself would refuse, :class:`~medkd.core.errors.LeakError` included.
    """
    options = options or TrainOptions()
    model = None if teacher is None else _find(dataset, teacher, options)
    job, run, folder, chosen = _ready(dataset, network, fold, options, model, method, write=False)
    student = build_weightless(run.network)
    lesson = None if chosen is None else _lesson(job, run, student, chosen)
    _check_cases(job, folder, frozenset() if lesson is None else lesson.seen)
    distiller = None if lesson is None else lesson.distiller
    guard = None if chosen is None else LeakGuard(chosen.model.name, chosen.fold, len(chosen.seen), len(job.split.val))
    return describe_run(
        run,
        folder,
        student,
        SegmentationLoss(regions=job.description.labels.regions, batch_dice=False),
        distiller,
        guard,
    )


def _ready(
    dataset: str | int,
    network: str,
    fold: int | str,
    options: TrainOptions,
    teacher: ModelFolder[TrainedModel] | None = None,
    method: str | None = None,
    *,
    write: bool = True,
) -> tuple[_Job, RunDescription, Path, Teacher[TrainedModel] | None]:
    """Everything that can be refused before a network is built: job, run, fold folder and the teacher that may teach
    it.
    """
    job = _prepare(dataset, fold, options, write)
    if teacher is None:
        run = _describe(job, network, options.patch_size, None, None)
        return job, run, _fold_folder(job, run, _run_name(job, network)), None
    teacher.check_fits(job.plan, job.configuration.name, job.description)
    chosen = choose_teacher(teacher, fold, job.split, job.store.cases(), job.raw)
    # the teacher is best on the patch it was trained on: another size changes how much padding it sees
    run = _describe(job, network, options.patch_size or teacher.describe().patch_size, method, chosen)
    return job, run, _fold_folder(job, run, _run_name(job, network, method, teacher.name)), chosen


def _prepare(dataset: str | int, fold: int | str, options: TrainOptions, write: bool) -> _Job:
    root = Root.resolve(options.root)
    name = root.dataset_name(dataset)
    folder = root.preprocessed / name
    plan = Plan.load(folder / PLANS_FILE)
    configuration = plan.configuration(options.configuration)
    description = DatasetDescription.load(folder / DATASET_FILE)
    store = CaseStore(folder / configuration.name)
    cases = store.cases()
    if not cases:
        raise DataError(
            f"{name} has no preprocessed cases for {configuration.name}; run medkd_plan_and_preprocess -d {name} -c "
            f"{configuration.name}."
        )
    split = find_split(folder, fold, cases, description.patients, root.raw_dataset(name), write=write)
    return _Job(
        name, root, plan, description, configuration, store, split, str(fold), options, pick_device(options.device)
    )


def _find(dataset: str | int, teacher: str, options: TrainOptions) -> ModelFolder[TrainedModel]:
    root = Root.resolve(options.root)
    return find_model(teacher, root.results / root.dataset_name(dataset), options.configuration, "segmentation")


def _describe(
    job: _Job, network: str, patch: tuple[int, ...] | None, method: str | None, teacher: Teacher[TrainedModel] | None
) -> RunDescription:
    options = job.options
    planned = job.configuration.architecture(network)
    size = fit_patch(network, patch or planned.patch_size)
    if len(size) != job.configuration.rank:
        raise RunError(
            f"--patch-size needs {job.configuration.rank} values for {job.configuration.name}, found {len(size)}."
        )
    in_plan = network in job.configuration.architectures
    spec = NetworkSpec(
        name=network,
        in_channels=len(job.description.channel_names),
        num_outputs=job.description.labels.num_outputs,
        patch_size=size,
        architecture=planned if in_plan else None,
        width_divisor=options.width_divisor,
        deep_supervision=NETWORKS[network].deep_supervision,
    )
    rule = job.rule
    budget = Budget(
        options.epochs or (rule.distilled_epochs if method and rule.distilled_epochs else rule.epochs),
        options.iterations_per_epoch or rule.iterations_per_epoch,
        options.batch_size or planned.batch_size,
        options.learning_rate or rule.learning_rate,
        options.seed,
    )
    precision = options.precision or ("fp16" if job.device.type == "cuda" else "fp32")
    axes = _mirrored_axes(job, teacher)
    name = None if teacher is None else teacher.model.recorded
    described = RunDescription(
        dataset=job.name,
        configuration=job.configuration.name,
        network=spec,
        budget=budget,
        mirror_axes=axes,
        precision=precision,
        method=method,
        method_parameters=dict(options.method_parameters),
        teacher=name,
    )
    described = replace(described, modules=foreign_modules((NETWORKS, network), (METHODS, method or "none")))
    if options.init not in ("random", TEACHER) or (method is None and options.init == TEACHER):
        raise RunError(f"--init must be random, or {TEACHER} for a student that has a teacher, found '{options.init}'.")
    if method is None:
        return described
    return replace(described, targets=options.targets, targets_tta=_averaged(options, method), init=options.init)


def _mirrored_axes(job: _Job, teacher: Teacher[TrainedModel] | None) -> tuple[int, ...]:
    """Axes that augmentation and prediction mirror: all but those that the teacher was kept from, since left may not be
    right there.
    """
    rule = job.rule.augmentation
    axes = job.configuration.mirrored if rule is None or rule.flip > 0 else ()
    if teacher is None:
        return axes
    return teacher.model.describe().allowed_axes(axes)


def _averaged(options: TrainOptions, method: str) -> bool:
    """Whether cached targets are means over mirrored copies.

    Raises:
        RunError: the options of the targets are not known or do not belong together.
    """
    if options.targets not in ("live", CACHED):
        raise RunError(f"--targets must be live or {CACHED}, found '{options.targets}'.")
    if options.targets_tta and options.targets != CACHED:
        raise RunError(
            "--targets-tta is for cached targets; add --targets cached, or use the method ensemble, which averages "
            "live ones."
        )
    joined = [part.strip() for part in method.split("+")]
    return options.targets == CACHED and (options.targets_tta or any(METHODS[part].averages for part in joined))


def shared_facts(plan: Plan, description: DatasetDescription, configuration: str) -> dict[str, Any]:
    """What the folds of one run must have in common; sizes of networks and numbers of cases do not count."""
    configured = plan.configuration(configuration)
    facts: dict[str, Any] = {
        "channels": description.channel_names,
        "labels": description.labels,
        "axis order": plan.transpose,
    }
    facts |= {key: getattr(configured, key) for key in _SHARED}
    facts["protocol"] = plan.protocol
    if "ct" in configured.normalization:
        facts["intensities"] = plan.intensities
    return facts


def _run_name(job: _Job, network: str, method: str | None = None, teacher: str | None = None) -> str:
    width = f"_w{job.options.width_divisor}" if job.options.width_divisor != 1 else ""
    return run_name(f"{network}{width}", job.configuration.name, method, teacher, job.options.tag)


def _fold_folder(job: _Job, run: RunDescription, name: str) -> Path:
    path = job.root.results / job.name / name
    facts = SharedFacts(shared_facts(job.plan, job.description, job.configuration.name), _stored_facts)
    return open_fold(path, job.fold, run, facts, resume=job.options.resume, overwrite=job.options.overwrite)


def _stored_facts(path: Path) -> dict[str, Any]:
    stored = RunFolder.load(path)
    return shared_facts(stored.plan, stored.dataset, stored.run.configuration)


def _check_cases(job: _Job, folder: Path, taught_by: frozenset[str]) -> None:
    """A fold that goes on must go on with its own cases; a finished one keeps them."""
    if not job.options.overwrite and not _is_finished(folder, job.options):
        check_cases(folder, job.split, taught_by)


def _start(job: _Job, run: RunDescription, folder: Path, taught_by: frozenset[str]) -> None:
    start_fold(folder, run, job.plan, job.description, job.split, taught_by, job.options.overwrite)


def _is_finished(folder: Path, options: TrainOptions) -> bool:
    return options.resume and (folder / FINAL).exists()


def _data(job: _Job, run: RunDescription) -> SegmentationData:
    workers = default_workers() if job.options.workers is None else job.options.workers
    labels, patch = job.description.labels, run.network.patch_size
    return SegmentationData(
        job.store.folder, job.split, labels, job.configuration, patch, run.mirror_axes, workers, job.rule
    )


def _settings(job: _Job, run: RunDescription) -> LoopSettings:
    rule = job.rule
    floor = rule.floor if run.method is None or rule.distilled_floor is None else rule.distilled_floor
    return LoopSettings(
        budget=run.budget,
        device=job.device,
        precision=run.precision,  # type: ignore[arg-type]  # checked by the options
        save_every=job.options.save_every,
        momentum=rule.momentum,
        weight_decay=rule.weight_decay,
        clip=rule.clip,
        power=rule.power,
        nesterov=rule.nesterov,
        floor=floor,
        per_step=rule.decay == "step",
    )


@dataclass(frozen=True)
class _Lesson:
    """What teaches: the distiller, and the teacher's folds with their networks, the first of which teaches alone where
    one suffices.
    """

    distiller: Distiller
    teachers: list[Teacher]
    networks: list[SegmentationNetwork]
    tta: bool

    @property
    def seen(self) -> frozenset[str]:
        """Every case that any of the folds has seen."""
        return frozenset().union(*(teacher.seen for teacher in self.teachers))

    def predict(self, job: _Job) -> Path | None:
        """The folder of the cached targets, which are predicted where there are none yet; None for a method without a
        teacher.
        """
        if not self.distiller.needs_teacher:
            return None
        cases, limit = job.split.train, job.options.targets_limit
        return cache_targets(self.teachers, self.networks, job.store, cases, job.device, tta=self.tta, limit=limit)


def _lesson(job: _Job, run: RunDescription, student: SegmentationNetwork, teacher: Teacher) -> _Lesson:
    """Build the method, and load of the teacher what it needs."""
    network, model = teacher.network(), teacher.model.describe()
    if run.init == TEACHER:
        check_inheritance(student, network)
    labels, patch = job.description.labels, run.network.patch_size
    context = Context(
        student_taps=student.taps,
        teacher_taps=network.taps,
        num_outputs=labels.num_outputs,
        regions=labels.regions,
        spacing=job.configuration.spacing,
        patch_size=patch,
        mirror_axes=model.mirror_axes,
    )
    helper_seed(job.options.seed)
    method = build_method(run.method or "none", context, run.method_parameters)
    teachers = allowed_folds(teacher, job.split, job.store.cases(), job.raw) if method.averages else [teacher]
    networks = [network, *(other.network() for other in teachers[1:])]
    if (method.averages or run.targets_tta) and len(networks) == 1 and not model.mirror_axes:
        raise RunError(
            f"There is nothing to average: the teacher {teacher.model.name} was trained without mirroring, and "
            "only its fold "
            f"{teacher.fold} may teach; use kd without --targets-tta."
        )
    cached = run.targets == CACHED
    distiller = Distiller(None if cached else network, method, cached=cached, partners=() if cached else networks[1:])
    return _Lesson(distiller, teachers, networks, run.targets_tta)


def _finish(job: _Job, run: RunDescription, folder: Path) -> Path:
    if job.options.validate:
        cases = validation_cases(folder)
        finish_fold(RunFolder.load(folder.parent), folder, job.store, job.raw, cases, job.device)
    return folder
