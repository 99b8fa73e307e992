"""What detection says to the training that all tasks share: its plan, its run, and how a family trains."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

import medkd.training.run as training_run
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError, PlanError, RunError
from medkd.core.protocol_rows import merged_parameters, published_lines
from medkd.core.run import DETECTION, FINAL, LATEST, Budget, NetworkSpec, RunDescription
from medkd.core.splits import Split
from medkd.core.workers import default_workers
from medkd.detection.base import DETECTORS, Detector, DetectorSpec
from medkd.detection.distiller import DetectorDistiller
from medkd.detection.families import register_detectors
from medkd.detection.images import drawn_images, follows_teacher, images_line, size_text, steps_per_epoch
from medkd.detection.inheritance import IMAGES, inherit
from medkd.detection.job import DetectionJob
from medkd.detection.joined import check_start_of, joined
from medkd.detection.letterbox import letterbox
from medkd.detection.methods import DETECTION_METHODS, check_known
from medkd.detection.models import TrainedDetector, seen_by_start
from medkd.detection.options import DetectorOptions
from medkd.detection.parts import check_shared
from medkd.detection.plan import SIDES, STRIDE, DetectionPlan
from medkd.detection.published import check_ultralytics, followed, ultralytics_precision
from medkd.detection.sampling import walk
from medkd.detection.silent import silence_of
from medkd.detection.sources import sources_of
from medkd.detection.store import DetectionStore
from medkd.detection.untrained import UntrainedDetector
from medkd.detection.weights import start_from
from medkd.distillation import METHODS
from medkd.models.guard import Teacher
from medkd.models.pretrained import find_source, start_weights
from medkd.networks.complexity import count_parameters
from medkd.training.cases_without_labels import NO_LABELS, share_of, split_with_unlabelled, unlabelled_of
from medkd.training.job import FoldData, Job, Lesson, TrainingTask, describe_run, protocol_lines
from medkd.training.options import INIT_FROM_TEACHER, check_start
from medkd.training.plausibility import Score, doubt, number_at, table_at
from medkd.training.ranks import current
from medkd.training.speed import speed_lines

DetectionFold = FoldData[DetectionPlan, DetectionStore, DetectorOptions]
DetectorJob = Job[DetectionPlan, DetectionStore, DetectorOptions]

_SHARED = (
    "categories",
    "anchor_scale",
    "augmentation",
    "sampling",
    "negatives",
    "final_learning_rate",
    "momentum",
    "weight_decay",
    "milestones",
    "warmup",
    "clip",
    *SIDES,
    "protocol",
)
_AP_OF_NOTHING = 0.001
_log = logging.getLogger(__name__)


class DetectionTask(TrainingTask[DetectionPlan, DetectionStore, DetectorOptions]):
    """Boxes on radiographs."""

    name = "detection"
    options = DetectorOptions
    noun = "images"
    mark = "box"
    in_several_processes = True

    def configuration(self, options: DetectorOptions) -> str:
        """The only one."""
        return DETECTION

    def read_plan(self, path: Path) -> DetectionPlan:
        """Read a ``plans.json``."""
        return DetectionPlan.load(path)

    def open_store(self, folder: Path, plan: DetectionPlan, configuration: str) -> DetectionStore:
        """The stored images, whose categories must be the plan's."""
        store = DetectionStore(folder / configuration)
        if store.categories != plan.categories:
            raise PlanError(
                f"{folder}: plan and preprocessed images have different categories; run medkd_plan_and_preprocess -d "
                f"{folder.name}."
            )
        return store

    def adapt_plan(self, plan: DetectionPlan, store: DetectionStore, options: DetectorOptions) -> DetectionPlan:
        """The plan with the image size of this run; images that were stored smaller are not blown up unnoticed."""
        size = options.image_size or plan.image_size
        if size < STRIDE or size % STRIDE:
            raise PlanError(f"--image-size must be a multiple of {STRIDE}, found {size}.")
        small = [case for case in store.cases() if max(store.size(case)) < min(size, max(store.original_size(case)))]
        if small:
            raise PlanError(
                f"{len(small)} images, for example {small[0]}, are stored with {max(store.size(small[0]))} px, fewer "
                f"than {size}; run medkd_plan_and_preprocess -d {plan.dataset} --image-size {size}."
            )
        return plan if size == plan.image_size else plan.filling(size)

    def facts(self, plan: DetectionPlan, description: DatasetDescription, configuration: str) -> Mapping[str, Any]:
        """What outputs mean, and how a detector is trained."""
        return {key: getattr(plan, key) for key in _SHARED}

    def unlabelled(self, store: DetectionStore) -> tuple[str, ...]:
        """The stored images of ``imagesUn``."""
        return tuple(store.unlabelled())

    def with_unlabelled(self, data: DetectionFold, method: str | None) -> Split:
        """See :func:`medkd.training.cases_without_labels.split_with_unlabelled`."""
        store = data.store

        def digests() -> Mapping[str, str]:
            return {case: entry.pixels for case, entry in store.index.cases.items()}

        learns = method is not None and follows_teacher(method)
        return split_with_unlabelled(data, method, store.unlabelled(), learns=learns, digests=digests, noun="image")

    def structures(self, data: DetectionFold) -> tuple[str, ...]:
        """The categories."""
        return data.plan.categories

    def structures_of(self, data: DetectionFold, case: str) -> frozenset[str]:
        """The categories of the image's boxes."""
        return frozenset(data.store.names(case))

    def follow(self, data: DetectionFold, network: str, method: str | None, teacher: str | None) -> DetectionFold:
        """The protocol that is asked for, else the plan's; its rows set what the user did not."""
        given, text = data.options.method_parameters, data.options.protocol
        plan, found = followed(data.plan, text, data.description, (method, network, teacher))
        options = replace(data.options, method_parameters=merged_parameters(found, given))
        named = plan.protocol if found.sources or text else None
        return replace(
            data, plan=plan, options=options, protocol=named or None, published=published_lines(found, given)
        )

    def check(self, data: DetectionFold, network: str, method: str | None) -> None:
        """Refuse unknown names, and a fold without boxes."""
        if data.options.labels != NO_LABELS:
            if not any(data.store.names(case) for case in data.split.train):
                raise DataError(
                    f"Fold {data.fold} of {data.dataset} has no box in its {len(data.split.train)} training images; "
                    "choose another fold."
                )
            drawn_images(data)
        register_detectors(network)
        if DETECTORS[network].family == "yolo":
            check_ultralytics(network, data.plan, data.options.speed)
        check_start(data.options.init, method)
        if method is not None:
            check_known(method)

    def seen_at_start(self, data: DetectionFold) -> frozenset[str]:
        """What the weights that the detector starts from have seen."""
        start, cases = data.options.backbone_weights, sorted({*data.store.cases(), *data.split.val})
        known, whole = (data.fold, data.split, cases, data.raw, data.description.patients), data.plan.categories
        if data.weights is not None:
            return seen_by_start(Path(data.weights.file), *known, whole)
        return frozenset() if start is None else seen_by_start(Path(start), *known)

    def start(self, data: DetectionFold, network: str) -> DetectionFold:
        """Weights of the backbone, or of a detector for COCO, from the library of the detector; or a file."""
        asked = data.options.weights
        if asked is None:
            return data
        return replace(data, weights=start_weights(asked, *find_source(asked, sources_of(network), network)))

    def describe(
        self, data: DetectionFold, network: str, method: str | None, teacher: Teacher[TrainedDetector] | None
    ) -> RunDescription:
        """``run.json``: the options, else the plan's values."""
        options, plan = data.options, data.plan
        budget = Budget(
            options.epochs or plan.epochs,
            options.iterations_per_epoch or 0,
            options.batch_size or plan.batch_size,
            options.learning_rate or plan.learning_rate,
            options.seed,
        )
        size = (plan.image_size, plan.image_size)
        spec = NetworkSpec(name=network, in_channels=3, num_outputs=len(plan.categories), patch_size=size)
        run = describe_run(data, spec, budget, method, teacher, (DETECTORS, METHODS, DETECTION_METHODS))
        start = options.backbone_weights
        weights = None if start is None else str(Path(start).absolute())
        run = replace(run, backbone_weights=weights, init=options.init)
        if DETECTORS[network].family == "yolo":
            run = replace(run, precision=ultralytics_precision(network, options.precision, data.device))
        if method is None:
            return run
        return replace(run, unlabelled_share=options.unlabelled_share, labels=options.labels)

    def score(self, summary: Mapping[str, Any]) -> Score | None:
        """The average precision over all classes."""
        precision = number_at(summary, "mean", "AP", "mean")
        return None if precision is None else ("AP", precision, _AP_OF_NOTHING)

    def part_scores(self, summary: Mapping[str, Any]) -> Mapping[str, Score]:
        """The average precision of each class of which the validation images show boxes."""
        classes = table_at(summary, "classes")
        found: dict[str, Score] = {}
        for name in classes:
            precision = number_at(classes, name, "AP", "mean")
            if precision is not None and number_at(classes, name, "boxes"):
                found[str(name)] = ("AP", precision, _AP_OF_NOTHING)
        return found

    def untrained(self, job: DetectorJob) -> UntrainedDetector:
        """Classes, layers and images of what is going to teach."""
        return UntrainedDetector(job)

    def build(self, job: DetectorJob, *, weightless: bool = False) -> DetectionLesson:
        """Student, and teacher with its method; detectors are always built with weights."""
        return DetectionLesson(job)

    def validate(self, job: DetectorJob, cases: tuple[str, ...]) -> None:
        """Find boxes in the images and score them in original pixels."""
        from medkd.detection.validation import finish_fold

        finish_fold(job.folder, job.store, job.raw, cases, job.device)


class DetectionLesson(Lesson):
    """Student, teacher and method of a job.

    Args:
        job: what is trained.

    Attributes:
        student: the detector as it starts: equal for equal seeds, alone and under every method.
        distiller: teacher and method; None for a detector alone.

    Raises:
        MedkdError: student, teacher and method do not fit.
    """

    def __init__(self, job: DetectorJob) -> None:
        self.job = job
        self.seen = job.seen
        network = job.run.network
        size, plan = network.patch_size[0], job.plan
        self.spec = DetectorSpec(network.name, plan.categories, size, plan.anchor_scale, plan.sides)
        torch.manual_seed(job.options.seed)
        self.student: Detector = DETECTORS[network.name].build(self.spec)
        if job.weights is not None:
            start_from(self.student, Path(job.weights.file))
        if job.options.backbone_weights is not None:
            start_from(self.student, Path(job.options.backbone_weights))
        self.first: Detector | None = None
        self.distiller = None if job.teacher is None else self._distiller(job.teacher)
        check_shared(self.student, self.distiller)

    def prepare(self) -> None:
        """Warn of terms that cannot teach, where a training begins; ``--continue`` may begin one, too."""
        if not can_continue(self.family_job()) and (silent := self.silent()):
            doubt(silent, strict=self.job.options.strict)

    def silent(self) -> str:
        """A sentence about terms of the method that cannot reach the student; empty where there are none."""
        return "" if self.distiller is None else silence_of(self.distiller, self.student)

    def fit(self) -> None:
        """Give the student its first weights, unless it goes on, and let the detector's family train."""
        family_job = self.family_job()
        if self.first is not None and not can_continue(family_job):
            inherit_in(self.job, self.student, self.first)
        self.first = None  # the distiller holds the teacher, where the method needs it
        fit(family_job)
        if current().first and not (self.job.folder / FINAL).exists():
            raise RunError(f"{self.job.folder} has no {FINAL} after training; continue it with --continue.")

    def family_job(self) -> DetectionJob:
        """What the family gets."""
        job, options = self.job, self.job.options
        return DetectionJob(
            detector=self.student,
            distiller=self.distiller,
            plan=job.plan,
            store=job.store.folder,
            train=() if job.run.labels == NO_LABELS else job.store.shown(job.split.train),
            unlabelled=unlabelled_of(job),
            unlabelled_share=share_of(job),
            val=job.split.val,
            budget=job.run.budget,
            folder=job.folder,
            device=job.device,
            precision=job.run.precision,
            speed=job.run.speed,
            resume=options.resume,
            workers=default_workers(current().beside) if options.workers is None else options.workers,
            tracking=job.tracking,
        )

    def lines(self) -> list[str]:
        """What the training would do, for people."""
        job, budget, size = self.job, self.job.run.budget, self.spec.image_size
        steps = steps_per_epoch(job)
        inherits = ", starts from its teacher" if job.run.init == INIT_FROM_TEACHER else ""
        state = "finished" if (job.folder / FINAL).exists() else "new"
        lines = [
            f"run        {job.folder} ({state})",
            f"budget     {budget.epochs} epochs of {steps} steps, {budget.batch_size} {size_text(job.plan, size)}, "
            f"{job.run.precision}, learning rate {budget.learning_rate:g}, seed {budget.seed}",
            images_line(job),
            *speed_lines(job.run),
            f"student    {self.spec.name}: {count_parameters(self.student):,} parameters{inherits}",
        ]
        lines += protocol_lines(job.run)
        if job.teacher is None:
            return lines
        if isinstance(job.teacher.model, UntrainedDetector) and not job.options.strict:
            return [*lines, *self._lines_of_teacher(job.teacher)]  # a step with it would need weights
        silent = self.silent()
        if silent and job.options.strict:
            doubt(silent, strict=True)
        attention = [f"attention  {silent}"] if silent else []
        return [*lines, *self._lines_of_teacher(job.teacher), *attention]

    def _lines_of_teacher(self, chosen: Teacher[TrainedDetector]) -> list[str]:
        teacher = None if self.distiller is None else self.distiller.teacher
        helpers = 0 if self.distiller is None else sum(p.numel() for p in self.distiller.parameters())
        size = " is not needed" if teacher is None else f": {count_parameters(teacher):,} parameters"
        name = chosen.model.name
        return [
            f"teacher    {name}{size}",
            f"method     {self.job.run.method}, {helpers:,} trainable parameters of its own",
            f"leak guard fold {chosen.fold} of {name} teaches; it has seen {len(chosen.seen)} images and none of the "
            f"{len(self.job.split.val)} on which the student is judged",
        ]

    def _distiller(self, chosen: Teacher[TrainedDetector]) -> DetectorDistiller:
        run, teacher = self.job.run, chosen.network()
        if check_start_of(self.student, teacher, run.init):
            self.first = teacher
        return joined(self.student, teacher, run.method or "none", run.method_parameters, self.job.options.seed)


def fit(job: DetectionJob) -> None:
    """Train a detector by what its family brings along."""
    if job.detector.family == "yolo":
        from medkd.detection import yolo

        yolo.fit(job)
    else:
        from medkd.detection import tv

        tv.fit(job)


def can_continue(job: DetectionJob) -> bool:
    """Whether there is something to go on from, and it is wanted."""
    if not job.resume:
        return False
    if job.detector.family == "yolo":
        from medkd.detection import yolo

        return yolo.can_continue(job)
    return (job.folder / LATEST).exists()


def inherit_in(job: DetectorJob, student: Detector, teacher: Detector) -> None:
    """See :func:`medkd.detection.inheritance.inherit`; on images that the plan draws, without labels on any."""
    device = torch.device("cpu") if job.device.type == "mps" else job.device  # which has no float64
    blind = job.run.labels == NO_LABELS
    drawn = walk(unlabelled_of(job), job.options.seed, 0, IMAGES) if blind else drawn_images(job)
    cases = list(dict.fromkeys(drawn))[:IMAGES]
    size, sides = student.spec.image_size, student.spec.sides
    images = torch.stack([letterbox(job.store.image(case), size, sides=sides)[0] for case in cases])
    fits = inherit(student.to(device), teacher.to(device), images.to(device), job.options.seed)
    student.cpu()
    teacher.cpu()
    _log.info(
        "the student starts from its teacher: %.0f %% explained in the median layer",
        100 * median(fit.explained for fit in fits),
    )


train = partial(training_run.train, DetectionTask())
train_distill = partial(training_run.train_distill, DetectionTask())
dry_run = partial(training_run.dry_run, DetectionTask())
