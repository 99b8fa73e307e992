"""The two training commands for detectors as functions."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medkd.core.dataset import DatasetDescription
from medkd.core.device import pick_device
from medkd.core.errors import DataError, PlanError, RunError
from medkd.core.paths import Root
from medkd.core.registry import foreign_modules
from medkd.core.run import DATASET_FILE, DETECTION, FINAL, PLANS_FILE, Budget, NetworkSpec, RunDescription
from medkd.core.splits import Split, find_split
from medkd.core.workers import default_workers
from medkd.detection.base import DETECTORS, Detector, DetectorSpec
from medkd.detection.distiller import DetectorDistiller
from medkd.detection.families import register_detectors
from medkd.detection.job import DetectionJob
from medkd.detection.methods import DETECTION_METHODS, check_known
from medkd.detection.models import TrainedDetector, seen_by_start
from medkd.detection.options import DetectorOptions
from medkd.detection.plan import STRIDE, DetectionPlan
from medkd.detection.sampling import draw_epoch
from medkd.detection.store import DetectionStore
from medkd.detection.weights import start_from
from medkd.distillation import METHODS, Context, build_method
from medkd.models.base import find_model
from medkd.models.guard import Teacher, choose_teacher
from medkd.networks.complexity import count_parameters
from medkd.training.run_folder import SharedFacts, check_cases, open_fold, run_name, start_fold, validation_cases

_SHARED = (
    "categories",
    "anchor_scale",
    "augmentation",
    "sampling",
    "negatives",
    "final_learning_rate",
    "momentum",
    "weight_decay",
    "protocol",
)
_HELPER_SEED = 7919  # apart from the student's, which so starts equal under every method
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Prepared:
    """Everything that is known before a detector is built."""

    name: str
    root: Root
    plan: DetectionPlan
    description: DatasetDescription
    store: DetectionStore
    split: Split
    fold: str
    options: DetectorOptions
    device: torch.device


@dataclass(frozen=True)
class _Ready:
    """What is going to be trained, and where; nothing can be refused any more but for weights that do not fit.

    ``seen`` are the cases that the teacher and the weights that training starts from were trained on.
    """

    prepared: _Prepared
    run: RunDescription
    folder: Path
    teacher: Teacher[TrainedDetector] | None
    seen: frozenset[str]

    @property
    def spec(self) -> DetectorSpec:
        plan, network = self.prepared.plan, self.run.network
        return DetectorSpec(network.name, plan.categories, network.patch_size[0], plan.anchor_scale)


def train_detector(dataset: str | int, network: str, fold: int | str, options: DetectorOptions | None = None) -> Path:
    """Train a detector alone on one fold and score it on the fold's validation images.

    Args:
        dataset: number or full name.
        network: registry name.
        fold: 0-4 or ``all``.
        options: see :class:`~medkd.detection.options.DetectorOptions`.

    Returns:
        The fold folder.

    Raises:
        LeakError: the weights that it starts from have seen validation images of this fold.
        MedkdError: anything about the data, the plan or the settings that does not fit.
    """
    return _train(_ready(dataset, network, fold, options or DetectorOptions()))


def distill_detector(
    dataset: str | int, teacher: str, student: str, method: str, fold: int | str, options: DetectorOptions | None = None
) -> Path:
    """Train a detector with a teacher on one fold and score it on the fold's validation images.

    Args:
        dataset: number or full name.
        teacher: see :func:`medkd.models.base.find_model`.
        student: registry name.
        method: registry name, or several joined by ``+``.
        fold: 0-4 or ``all``.
        options: see :class:`~medkd.detection.options.DetectorOptions`.

    Returns:
        The fold folder.

    Raises:
        LeakError: the teacher, or the weights that the student starts from, have seen validation images of this fold.
        MedkdError: anything else that does not fit.
    """
    return _train(_ready(dataset, student, fold, options or DetectorOptions(), teacher, method))


def dry_run_detector(
    dataset: str | int,
    network: str,
    fold: int | str,
    options: DetectorOptions | None = None,
    teacher: str | None = None,
    method: str | None = None,
) -> list[str]:
    """What :func:`train_detector`, or with a teacher :func:`distill_detector`, would do, line by line; nothing is
    written or started.

    Raises:
        MedkdError: whatever the training itself would refuse, :class:`~medkd.core.errors.LeakError` included.
    """
    ready = _ready(dataset, network, fold, options or DetectorOptions(), teacher, method)
    prepared, run, budget = ready.prepared, ready.run, ready.run.budget
    if not prepared.options.overwrite and not (prepared.options.resume and (ready.folder / FINAL).exists()):
        check_cases(ready.folder, prepared.split, ready.seen)
    detector = _build(ready)
    distiller = _distiller(ready, detector)
    steps = budget.iterations_per_epoch or -(-len(_drawn(prepared)) // budget.batch_size)
    size = ready.spec.image_size
    lines = [
        f"run        {ready.folder}",
        f"budget     {budget.epochs} epochs of {steps} steps, {budget.batch_size} images of {size} × {size}, "
        f"{run.precision}, "
        f"learning rate {budget.learning_rate:g}, seed {budget.seed}",
        f"images     {len(prepared.split.train)} for training, {len(prepared.split.val)} for validation",
        f"student    {network}: {count_parameters(detector):,} parameters",
    ]
    if distiller is not None and ready.teacher is not None:
        helpers = sum(p.numel() for p in distiller.parameters())
        parameters = (
            f": {count_parameters(distiller.teacher):,} parameters"
            if distiller.teacher is not None
            else " is not needed"
        )
        lines += [
            f"teacher    {ready.teacher.model.name}{parameters}",
            f"method     {run.method}, {helpers:,} trainable parameters of its own",
            f"leak guard fold {ready.teacher.fold} of {ready.teacher.model.name} teaches; it has seen "
            f"{len(ready.teacher.seen)} images "
            f"and none of the {len(prepared.split.val)} on which the student is judged",
        ]
    return lines


def _ready(
    dataset: str | int,
    network: str,
    fold: int | str,
    options: DetectorOptions,
    teacher: str | None = None,
    method: str | None = None,
) -> _Ready:
    """Everything that can be refused before a detector is built."""
    prepared = _prepare(dataset, fold, options)
    register_detectors(network)
    DETECTORS[network]  # an unknown name is refused before anything else is looked for
    if method is not None:
        check_known(method)
    chosen = None
    if teacher is not None:
        model = find_model(teacher, prepared.root.results / prepared.name, DETECTION, "detection")
        model.check_fits(prepared.plan, DETECTION, prepared.description)
        raw = prepared.root.raw_dataset(prepared.name)
        chosen = choose_teacher(model, fold, prepared.split, prepared.store.cases(), raw)
    start = options.backbone_weights
    seen = frozenset() if start is None else seen_by_start(Path(start), fold, prepared.split)
    run = _describe(prepared, network, method, chosen)
    name = run_name(network, DETECTION, method, chosen.model.name if chosen else None, options.tag)
    path = prepared.root.results / prepared.name / name
    facts = SharedFacts(shared_facts(prepared.plan), _stored_facts)
    folder = open_fold(path, prepared.fold, run, facts, resume=options.resume, overwrite=options.overwrite)
    return _Ready(prepared, run, folder, chosen, seen | (chosen.seen if chosen else frozenset()))


def shared_facts(plan: DetectionPlan) -> dict[str, Any]:
    """What the folds of one run must have in common: what outputs mean, and how it is trained."""
    return {key: getattr(plan, key) for key in _SHARED}


def _stored_facts(path: Path) -> dict[str, Any]:
    return shared_facts(DetectionPlan.load(path / PLANS_FILE))


def _prepare(dataset: str | int, fold: int | str, options: DetectorOptions) -> _Prepared:
    root = Root.resolve(options.root)
    name = root.dataset_name(dataset)
    folder = root.preprocessed / name
    plan = DetectionPlan.load(folder / PLANS_FILE)
    description = DatasetDescription.load(folder / DATASET_FILE)
    store = DetectionStore(folder / DETECTION)
    if store.categories != plan.categories:
        raise PlanError(
            f"{folder}: plan and preprocessed images have different categories; run medkd_plan_and_preprocess -d "
            f"{name}."
        )
    plan = _sized(plan, store, options.image_size)
    split = find_split(folder, fold, store.cases(), description.patients, root.raw_dataset(name), write=False)
    prepared = _Prepared(name, root, plan, description, store, split, str(fold), options, pick_device(options.device))
    _check_boxes(prepared)
    return prepared


def _sized(plan: DetectionPlan, store: DetectionStore, wanted: int | None) -> DetectionPlan:
    """The plan with the image size of this run; images that were stored smaller are not blown up unnoticed."""
    size = wanted or plan.image_size
    if size < STRIDE or size % STRIDE:
        raise PlanError(f"--image-size must be a multiple of {STRIDE}, found {size}.")
    small = [c for c in store.cases() if max(store.size(c)) < min(size, max(store.original_size(c)))]
    if small:
        raise PlanError(
            f"{len(small)} images, for example {small[0]}, are stored with {max(store.size(small[0]))} px, fewer than "
            f"{size}; run "
            f"medkd_plan_and_preprocess -d {plan.dataset} --image-size {size}."
        )
    return replace(plan, image_size=size)


def _check_boxes(prepared: _Prepared) -> None:
    """There must be something to learn, and a class that is absent should not surprise anybody later."""
    train, val = (
        {n for case in part for n in prepared.store.names(case)} for part in (prepared.split.train, prepared.split.val)
    )
    if not train:
        count = len(prepared.split.train)
        raise DataError(
            f"Fold {prepared.fold} of {prepared.name} has no box in its {count} training images; choose another fold."
        )
    _drawn(prepared)
    for part, present in (("trained", train), ("judged", val)):
        absent = [name for name in prepared.plan.categories if name not in present]
        if absent and (part == "trained" or prepared.split.val):
            _log.warning("fold %s is %s without any box of %s", prepared.fold, part, ", ".join(absent))


def _drawn(prepared: _Prepared) -> list[str]:
    annotations = {case: prepared.store.names(case) for case in prepared.split.train}
    return draw_epoch(prepared.split.train, annotations, prepared.plan, prepared.options.seed, 0)


def _describe(
    prepared: _Prepared, network: str, method: str | None, teacher: Teacher[TrainedDetector] | None
) -> RunDescription:
    options, plan = prepared.options, prepared.plan
    size = plan.image_size
    budget = Budget(
        options.epochs or plan.epochs,
        options.iterations_per_epoch or 0,
        options.batch_size or plan.batch_size,
        options.learning_rate or plan.learning_rate,
        options.seed,
    )
    precision = options.precision or ("fp16" if prepared.device.type == "cuda" else "fp32")
    recorded = None if teacher is None else teacher.model.recorded
    spec = NetworkSpec(name=network, in_channels=3, num_outputs=len(plan.categories), patch_size=(size, size))
    start = None if options.backbone_weights is None else str(Path(options.backbone_weights).absolute())
    described = RunDescription(
        dataset=prepared.name,
        configuration=DETECTION,
        network=spec,
        budget=budget,
        mirror_axes=(),
        precision=precision,
        method=method,
        method_parameters=dict(options.method_parameters),
        teacher=recorded,
    )
    named = ((DETECTORS, network), (METHODS, method or "none"), (DETECTION_METHODS, method or "none"))
    return replace(described, backbone_weights=start, modules=foreign_modules(*named))


def _train(ready: _Ready) -> Path:
    prepared, options = ready.prepared, ready.prepared.options
    finished = options.resume and (ready.folder / FINAL).exists()
    detector = _build(ready)
    distiller = None if finished else _distiller(ready, detector)
    job = _job(ready, detector, distiller)
    if not finished:
        start_fold(
            ready.folder, ready.run, prepared.plan, prepared.description, prepared.split, ready.seen, options.overwrite
        )
        _fit(job)
    if options.validate:
        from medkd.detection.validation import finish_fold

        # a fold that was finished before is judged on what it held out then
        finish_fold(
            replace(job, distiller=None, val=validation_cases(ready.folder)), prepared.root.raw_dataset(prepared.name)
        )
    return ready.folder


def _build(ready: _Ready) -> Detector:
    """The detector as it starts: equal for equal seeds, alone and under every method."""
    options = ready.prepared.options
    torch.manual_seed(options.seed)
    detector = DETECTORS[ready.spec.name].build(ready.spec)
    if options.backbone_weights is not None:
        start_from(detector, Path(options.backbone_weights))
    return detector


def _distiller(ready: _Ready, student: Detector) -> DetectorDistiller | None:
    if ready.teacher is None:
        return None
    teacher: Detector = ready.teacher.network()
    classes, size = len(ready.spec.categories), ready.spec.image_size
    outputs = classes + 1 if student.two_stage else classes
    context = Context(
        student_taps=student.taps,
        teacher_taps=teacher.taps,
        num_outputs=outputs,
        regions=not student.two_stage,
        spacing=(1.0, 1.0),
        patch_size=(size, size),
        task="detection",
    )
    torch.manual_seed(ready.prepared.options.seed + _HELPER_SEED)
    method = build_method(ready.run.method or "none", context, ready.run.method_parameters, own=DETECTION_METHODS)
    return DetectorDistiller(teacher, method, student.anchors)


def _job(ready: _Ready, detector: Detector, distiller: DetectorDistiller | None) -> DetectionJob:
    prepared, options = ready.prepared, ready.prepared.options
    return DetectionJob(
        detector=detector,
        distiller=distiller,
        plan=prepared.plan,
        store=prepared.store.folder,
        train=prepared.split.train,
        val=prepared.split.val,
        budget=ready.run.budget,
        folder=ready.folder,
        device=prepared.device,
        precision=ready.run.precision,
        resume=options.resume,
        workers=default_workers() if options.workers is None else options.workers,
    )


def _fit(job: DetectionJob) -> None:
    if job.detector.family == "yolo":
        from medkd.detection import yolo

        yolo.fit(job)
    else:
        from medkd.detection import tv

        tv.fit(job)
    if not (job.folder / FINAL).exists():
        raise RunError(f"{job.folder} has no {FINAL} after training; continue it with --continue.")
