"""The networks of a segmentation job: the student, and what teaches it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medkd.core.checkpoint import weights_digest
from medkd.core.errors import MethodError, RunError
from medkd.core.protocol import TrainingRule
from medkd.core.run import LATEST, RunDescription
from medkd.core.workers import default_workers
from medkd.distillation import METHODS, Distiller, Method, build_method
from medkd.distillation.base import Context
from medkd.distillation.gradient_check import sentence, silent_terms
from medkd.models.guard import UNKNOWN, Teacher, allowed_folds
from medkd.models.segmentation import TrainedModel, label_meaning
from medkd.models.several import SeveralTeachers
from medkd.networks import SegmentationNetwork, build_network
from medkd.networks.inheritance import check_inheritance
from medkd.networks.inheritance_twins import without_counterpart
from medkd.networks.pretrained import start_network
from medkd.networks.reference import build_weightless
from medkd.training.cached import TargetRequest, cache_merged, cache_targets, mirrored_by_both
from medkd.training.cases_without_labels import unlabelled_of
from medkd.training.distillation import DistillationTrainer
from medkd.training.dry_run import DryRun, LeakGuard, describe_run
from medkd.training.hooks import TellTracker
from medkd.training.job import HELPER_SEED, Lesson, method_names
from medkd.training.losses import SegmentationLoss
from medkd.training.merged import MergedPredictor, StudentGrid
from medkd.training.options import CACHED, INIT_FROM_TEACHER, OUT_OF_FOLD, STORED_TARGETS
from medkd.training.out_of_fold import cache_out_of_fold, groups_out_of_fold, teachers_out_of_fold
from medkd.training.plausibility import doubt
from medkd.training.ranks import current
from medkd.training.segmentation import SegmentationData, SegmentationTrainer
from medkd.training.speed import check_compiled_taps
from medkd.training.trainer import LoopSettings
from medkd.training.unlabelled import drawn_from, voxelwise_sentence

if TYPE_CHECKING:
    from medkd.training.segmentation_task import SegmentationFold, SegmentationJob
    from medkd.training.side_by_side import Sharing

_TRIED = 4  # samples of the step that shows whether terms can teach; relations between samples need several
_log = logging.getLogger(__name__)


class SegmentationLesson(Lesson):
    """Student, teachers and method of a job.

    Args:
        job: what is trained.
        weightless: the student has shapes only.
        sharing: gives the teacher's networks and distillers where other lessons use them, too.

    Attributes:
        student: what is trained.
        distiller: teacher and method; None for a network alone.
        teachers: the folds that teach; none of several models, which are merged.

    Raises:
        MedkdError: student, teacher and method do not fit.
    """

    def __init__(self, job: SegmentationJob, *, weightless: bool = False, sharing: Sharing | None = None) -> None:
        self.job = job
        self._sharing = sharing
        self._targets: Path | None = None
        self._places: Path | None = None
        torch.manual_seed(job.options.seed)
        self.student = build_weightless(job.run.network) if weightless else build_network(job.run.network)
        if job.weights is not None and not weightless:
            start_network(self.student, Path(job.weights.file))
        self.distiller: Distiller | None = None
        self.teachers: Sequence[Teacher[TrainedModel]] = []
        self._networks: list[SegmentationNetwork] = []
        self._merged: MergedPredictor | None = None
        self._start: tuple[SegmentationNetwork, bool] | None = None  # the teacher's network, and whether labels agree
        self._random_layers: tuple[str, ...] = ()
        if job.teacher is not None:
            self._take(job.teacher)
        self.seen = job.seen.union(*(teacher.seen for teacher in self.teachers))

    def teacher_weights(self) -> tuple[str, ...]:
        """A hash of each network that teaches, or else of the one whose weights are the student's first ones, as long
        as it is there: until the loop is made.
        """
        if self.distiller is None or not self.distiller.needs_teacher:
            return () if self._start is None else (weights_digest(self._start[0].state_dict()),)
        if merged_teachers(self.job) is not None:
            return self._all_merged().described.weights
        return tuple(weights_digest(network.state_dict()) for network in self._networks)

    def _all_merged(self) -> MergedPredictor:
        """Several teachers, loaded once."""
        if self._merged is None:
            self._merged = merged_predictor(self.job)
        return self._merged

    def described(self, run: RunDescription) -> RunDescription:
        """With the layers that no teacher gave weights."""
        return replace(run, random_layers=self._random_layers)

    def _start_from(self, network: SegmentationNetwork, model: TrainedModel) -> None:
        """See that the student can start from a teacher, where it is to."""
        if self.job.run.init != INIT_FROM_TEACHER:
            return
        ours, theirs = check_inheritance(self.student, network)
        same = label_meaning(model.labels) == label_meaning(self.job.description.labels)
        self._random_layers = without_counterpart(ours, theirs, same_labels=same)
        self._start = (network, same)

    def prepare(self) -> None:
        """Predict what is missing: cached targets, and where the teacher sees structures in scans without labels."""
        job = self.job
        self.refuse_doubts()
        unlabelled = unlabelled_of(job)
        cached = job.run.targets in STORED_TARGETS
        if self.distiller is None or not self.distiller.needs_teacher or not (cached or unlabelled):
            return
        cases = (*job.split.train, *job.split.unlabelled) if cached else ()
        request = TargetRequest(
            store=job.store,
            cases=cases,
            device=job.device,
            tta=job.run.targets_tta,
            limit=job.options.targets_limit,
            places=unlabelled,
            mirrored=student_axes(job),
        )
        if merged_teachers(job) is not None:
            folder = cache_merged(self._all_merged(), request)
        else:
            cache = cache_out_of_fold if job.run.targets == OUT_OF_FOLD else cache_targets
            folder = cache(self.teachers, self._networks, request)
        self._targets = folder if cached else None
        self._places = folder if unlabelled else None

    def fit(self) -> None:
        """Train in the loop; what cannot teach is said before the first step."""
        self.ready().fit(resume=self.job.options.resume)

    def ready(self) -> SegmentationTrainer:
        """The loop, ready to start; what cannot teach is said."""
        for line in self.doubts():
            _log.warning("%s", line)
        return self.trainer()

    def trainer(self) -> SegmentationTrainer:
        """The loop, ready to start; a student that inherits has its first weights."""
        job, data, settings = self.job, fold_data(self.job, self._targets, self._places), loop_settings(self.job)
        if self.distiller is None:
            return self._told(SegmentationTrainer(self.student, data, settings, job.folder))
        trainer = DistillationTrainer(self.student, self.distiller, data, settings, job.folder)
        continues = job.options.resume and (job.folder / LATEST).exists()
        if self._start is not None and not continues:
            if self._random_layers:
                _log.info("layers without a counterpart in the teacher stay random: %s", ", ".join(self._random_layers))
            trainer.inherit(*self._start)
        self._start = None
        self._networks.clear()  # with cached targets nothing else holds the teacher
        self._merged = None
        return self._told(trainer)

    def _told(self, trainer: SegmentationTrainer) -> SegmentationTrainer:
        """The loop, which tells a tracker of its epochs where one is asked for."""
        if self.job.tracking is not None:
            trainer.hooks = [*trainer.hooks, TellTracker(self.job.tracking)]
        return trainer

    def describe(self) -> DryRun:
        """What the training would do and need."""
        job, teacher = self.job, self.job.teacher
        guard = None
        if teacher is not None:
            folds, seen = teacher.fold, teacher.seen
            if job.run.targets == OUT_OF_FOLD:
                every = ", ".join(other.fold for other in self.teachers)
                folds = f"{every} (each case by those that have not seen it)"
                seen = frozenset().union(*(other.seen for other in self.teachers))
            known = None if UNKNOWN in seen else len(seen)
            guard = LeakGuard(teacher.model.name, folds, known, len(job.split.val))
        loss = SegmentationLoss(regions=job.description.labels.regions, batch_dice=False)
        return describe_run(job.run, job.folder, self.student, loss, self.distiller, guard)

    def lines(self) -> list[str]:
        """The same, for people, with what cannot teach."""
        self.refuse_doubts()
        doubts = self.doubts()  # first, since describing takes the method's weights
        lines = self.describe().lines()
        if self._random_layers:
            lines.append(f"random     {', '.join(self._random_layers)}, which have no counterpart in the teacher")
        return [*lines, *(f"attention  {line}" for line in doubts)]

    def refuse_doubts(self) -> None:
        """With ``--strict`` before anything is written, and not again where the loop is made."""
        for line in self.doubts() if self.job.options.strict else ():
            doubt(line, strict=True)

    def doubts(self) -> list[str]:
        """What cannot teach, or hardly, a sentence each."""
        if self.distiller is None:
            return []
        return [line for line in (self.silent(), voxelwise_sentence(self.job)) if line]

    def silent(self) -> str:
        """A sentence about terms of the method that cannot reach the student; empty where there are none."""
        if self.distiller is None:
            return ""
        batch = min(self.job.run.budget.batch_size, _TRIED)
        try:
            return sentence(silent_terms(self.distiller.method, batch))
        except MethodError:  # of random outputs; what it refuses in earnest, it says in earnest
            return ""

    def _take(self, teacher: Teacher[TrainedModel]) -> None:
        """Build the method, and load of the teacher what it needs."""
        job, run = self.job, self.job.run
        several = merged_teachers(job)
        if several is not None:
            several.check_once(teacher.fold)
            self._take_several()
            return
        network = self._load(teacher)
        self._start_from(network, teacher.model.describe())
        method = method_for(job, self.student, network)
        self.teachers, most = self._taking_part(teacher, method)
        self._networks = [network if other.fold == teacher.fold else self._load(other) for other in self.teachers]
        if (method.averages or run.targets_tta) and most == 1 and not _averaged_axes(job):
            raise RunError(
                f"There is nothing to average: the teacher {teacher.model.name} was trained without mirroring, or the "
                f"plan allows none, and only its fold {teacher.fold} may teach; use kd without --targets-tta."
            )
        if run.targets in STORED_TARGETS:
            self.distiller = Distiller(None, method, cached=True, confidence=run.confidence)
        else:
            self.distiller = self._distiller(network, method)

    def _load(self, teacher: Teacher[TrainedModel]) -> SegmentationNetwork:
        network: SegmentationNetwork = teacher.network() if self._sharing is None else self._sharing.network(teacher)
        return network

    def _distiller(self, network: SegmentationNetwork, method: Method) -> Distiller:
        make = Distiller if self._sharing is None else self._sharing.distiller
        return make(network, method, partners=self._networks[1:], confidence=self.job.run.confidence)

    def _taking_part(self, teacher: Teacher[TrainedModel], method: Method) -> tuple[list[Teacher[TrainedModel]], int]:
        """The teacher's folds that teach, and the largest number of them that is averaged."""
        job, cases, patients = self.job, self.job.store.cases(), self.job.description.patients
        if job.run.targets == OUT_OF_FOLD:
            every = [*job.split.train, *job.split.unlabelled]
            found = teachers_out_of_fold(teacher.model, every, job.raw, patients, strict=job.options.strict)
            return found, max(map(len, groups_out_of_fold(found, every)))
        found = [teacher]
        if method.averages:
            found = allowed_folds(teacher, job.split, cases, job.raw, patients)
        return found, len(found)

    def _take_several(self) -> None:
        """Build the method; whole cases are predicted before training, see :mod:`medkd.training.merged`."""
        run = self.job.run
        if run.targets != CACHED:
            raise RunError(
                "Several teachers, and a cascade, teach by predictions of whole cases: expected --targets cached, "
                f"found {run.targets}."
            )
        teachers, chosen = merged_teachers(self.job), self.job.teacher
        if run.init == INIT_FROM_TEACHER and teachers is not None and chosen is not None:
            first = teachers.members[0]
            self._start_from(first.model.network(first.folds_for(chosen.fold)[0]), first.model.describe())
        _refuse_features(method_names(run.method or "none"))
        method = method_for(self.job, self.student, self.student)
        self.distiller = Distiller(None, method, cached=True, confidence=run.confidence)


def _refuse_features(names: Sequence[str]) -> None:
    """Of several teachers nothing but outputs can be compared."""
    deep = [name for name in names if not METHODS[name].outputs_only]
    if deep and METHODS[deep[0]].needs_teacher:
        raise RunError(
            f"The method {deep[0]} needs more than a teacher's outputs, but several teachers, and the stages of a "
            "cascade, have nothing else in common; choose a method that needs outputs only (medkd_list methods)."
        )


def merged_teachers(job: SegmentationJob) -> SeveralTeachers | None:
    """The teachers of a job, where there are several."""
    model = None if job.teacher is None else job.teacher.model
    if model is None or not model.merges:
        return None
    return model if isinstance(model, SeveralTeachers) else SeveralTeachers.of([model])


def merged_predictor(job: SegmentationJob) -> MergedPredictor:
    """What predicts cases as several teachers see them."""
    model, teacher = merged_teachers(job), job.teacher
    assert model is not None and teacher is not None  # narrowed for the type checker
    grid = StudentGrid(job.plan, job.plan.configuration(job.configuration).rank, student_axes(job))
    return MergedPredictor(model, teacher.fold, grid, job.raw, job.device, tta=job.run.targets_tta)


def _averaged_axes(job: SegmentationJob) -> tuple[int, ...]:
    """Axes along which a teacher's outputs may be averaged: mirrored when it was trained, and allowed by the plan."""
    return () if job.teacher is None else mirrored_by_both(job.teacher.model.describe().mirror_axes, student_axes(job))


def student_axes(data: SegmentationFold) -> tuple[int, ...]:
    """Axes of its patch that the student may mirror: those that were asked for, else the plan's."""
    asked = data.options.mirror_axes
    return data.plan.configuration(data.configuration).mirrored if asked is None else asked


def method_for(job: SegmentationJob, student: SegmentationNetwork, teacher: SegmentationNetwork) -> Method:
    """The method of a job, built for its networks; equal for equal seeds.

    Raises:
        MethodError: it does not exist, is not defined for these networks, or has no such parameter.
        RunError: it reads features of a student that is to be compiled.
    """
    labels = job.description.labels
    context = Context(
        student_taps=student.taps,
        teacher_taps=teacher.taps,
        num_outputs=labels.num_outputs,
        regions=labels.regions,
        spacing=job.plan.configuration(job.configuration).spacing,
        patch_size=job.run.network.patch_size,
        mirror_axes=_averaged_axes(job),
    )
    torch.manual_seed(job.options.seed + HELPER_SEED)
    method = build_method(job.run.method or "none", context, job.run.method_parameters)
    check_compiled_taps(job.run.speed, job.run.method, method.needs().student)
    return method


def fold_data(job: SegmentationJob, targets: Path | None = None, places: Path | None = None) -> SegmentationData:
    """What the loop reads.

    Args:
        job: what is trained.
        targets: folder of the teacher's cached outputs.
        places: folder that says where the teacher sees structures in scans without labels.
    """
    judged = tuple(case for case in job.split.val if job.store.has_label(case))
    workers = default_workers(current().beside) if job.options.workers is None else job.options.workers
    return SegmentationData(
        store=job.store.folder,
        split=replace(job.split, val=judged),
        labels=job.description.labels,
        configuration=job.plan.configuration(job.configuration),
        patch_size=job.run.network.patch_size,
        mirror_axes=job.run.mirror_axes,
        workers=workers,
        rule=_rule(job),
        targets=targets,
        unlabelled=drawn_from(job, places),
    )


def loop_settings(job: SegmentationJob) -> LoopSettings:
    """How the loop runs."""
    run, rule = job.run, _rule(job)
    distilled = run.method is not None and rule.distilled_floor is not None
    precision: Any = run.precision  # checked by the options
    return LoopSettings(
        budget=run.budget,
        device=job.device,
        precision=precision,
        save_every=job.options.save_every,
        momentum=rule.momentum,
        weight_decay=rule.weight_decay,
        clip=rule.clip,
        power=rule.power,
        nesterov=rule.nesterov,
        floor=(rule.distilled_floor or 0.0) if distilled else rule.floor,
        per_step=rule.decay == "step",
        warmup=rule.warmup,
        schedule=rule.schedule,
        milestones=rule.milestones,
        optimizer=rule.optimizer,
        speed=run.speed,
    )


def _rule(job: SegmentationJob) -> TrainingRule:
    return job.plan.protocol.training if job.plan.protocol else TrainingRule()
