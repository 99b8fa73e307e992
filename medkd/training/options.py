"""What a user may set for training: one base for all tasks, and segmentation's own additions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from medkd.core.errors import RunError
from medkd.core.limits import check_numbers, is_whole, option_name
from medkd.core.precision import PRECISION_CHOICES, PrecisionChoice
from medkd.core.speed import Speed

TrackerName = Literal["wandb", "mlflow"]
TRACKERS: tuple[TrackerName, ...] = ("wandb", "mlflow")
INIT_FROM_TEACHER = "teacher"
"""Value of ``--init``."""
CACHED, OUT_OF_FOLD = "cached", "out-of-fold"
"""Values of ``--targets``."""
STORED_TARGETS = (CACHED, OUT_OF_FOLD)
"""Those with which the teacher predicts before training."""
LABELLING = ("unlabelled_share", "labels", "confidence")
"""Options that need a method which follows a teacher."""
TAUGHT = (*LABELLING, "method_parameters", "targets", "targets_tta", "targets_limit", "teachers")
"""Options that need a teacher."""
_SEPARATORS = ("/", "\\")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of every task, shared by training alone and distillation; None means the plan's or recipe's own value.

    Attributes:
        root: medkd's root folder, see :class:`medkd.core.paths.Root`.
        epochs: epochs.
        iterations_per_epoch: optimiser steps per epoch.
        batch_size: patches or images per step.
        learning_rate: initial learning rate.
        device: ``cuda``, ``cpu``, ``mps``, or None for the best that is present.
        precision: see :func:`medkd.core.arithmetic.chosen_precision`.
        seed: everything random follows from it.
        resume: continue an interrupted run (a finished one is left as it is).
        overwrite: throw away what an earlier run left in the fold folder.
        tag: text added to the run's name, for runs that differ in settings which the name does not show.
        workers: loader processes; None follows from the cores, 0 loads in the training process.
        method_parameters: ``method.parameter`` → value; it wins over a protocol's.
        weights: ``imagenet``, ``coco`` or a file that the network (its encoder, its backbone) starts from; None for
            random weights.
        protocol: name or file of a published protocol whose settings are taken, ``none`` for no protocol; None takes
            the plan's.
        validate: predict and score the fold's validation cases at the end.
        track: ``wandb`` or ``mlflow``: show the training there, see :mod:`medkd.training.tracking`; None sends nothing.
        strict: refuse what is otherwise a warning before the first step, see :func:`medkd.training.plausibility.doubt`.
        tf32: ``on`` or ``off``, on CUDA, see :class:`medkd.core.speed.Speed`; None is torch's own.
        channels_last: see there.
        cudnn_benchmark: see there.
        compile: see there.

    Raises:
        RunError: a number is outside of its limits, or the tag would lead out of the results folder.
    """

    root: Path | None = None
    epochs: int | None = None
    iterations_per_epoch: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    device: str | None = None
    precision: PrecisionChoice | None = None
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    tag: str | None = None
    workers: int | None = None
    method_parameters: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    protocol: str | None = None
    validate: bool = True
    track: TrackerName | None = None
    strict: bool = False
    tf32: Literal["on", "off"] | None = None
    channels_last: bool = False
    cudnn_benchmark: bool = False
    compile: bool = False

    whole_numbers: ClassVar[Mapping[str, int]] = {
        "epochs": 1,
        "iterations_per_epoch": 1,
        "batch_size": 1,
        "seed": 0,
        "workers": 0,
    }
    """Options that are whole numbers, with their lowest values."""

    positive_numbers: ClassVar[tuple[str, ...]] = ("learning_rate",)
    """Options that are numbers above 0."""

    def __post_init__(self) -> None:
        check_numbers(self, dict(self.whole_numbers), self.positive_numbers)
        check_choice("--precision", self.precision, (None, *PRECISION_CHOICES))
        check_choice("--track", self.track, (None, *TRACKERS))
        check_choice("--tf32", self.tf32, (None, "on", "off"))
        for name in ("channels_last", "cudnn_benchmark", "compile"):
            check_choice(option_name(name), getattr(self, name), (True, False))
        if self.resume and self.overwrite:
            raise RunError("Expected --continue or --overwrite, found both; leave one of them out.")
        if self.tag is not None:
            check_tag(self.tag)

    @property
    def speed(self) -> Speed:
        """torch's switches."""
        tf32 = None if self.tf32 is None else self.tf32 == "on"
        return Speed(tf32, self.channels_last, self.cudnn_benchmark, self.compile)


@dataclass(frozen=True, kw_only=True)
class TaughtOptions(RunOptions):
    """Options of tasks whose teachers may teach on cases without labels.

    Attributes:
        unlabelled_share: of the samples that are drawn from cases without labels; None is their share among all
            training cases, 0 leaves them out.
        labels: ``given``, or ``none``: no label is looked at, and labelled cases count as unlabelled.

    Raises:
        RunError: a value is outside of its limits.
    """

    unlabelled_share: float | None = None
    labels: Literal["given", "none"] = "given"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("--labels", self.labels, ("given", "none"))
        check_share("unlabelled_share", self.unlabelled_share)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TaughtOptions):
    """Options of segmentation networks.

    Epochs and steps are the plan's protocol's, else 1000 of 250 as in nnU-Net.

    Attributes:
        configuration: ``2d``, ``3d_fullres`` or ``3d_lowres``.
        patch_size: voxels per axis.
        width_divisor: divides the channels of a planned network.
        save_every: epochs between latest checkpoints.
        targets: ``live``: the teacher sees every augmented patch; ``cached``: it predicts every training case once,
            before training; ``out-of-fold``, for a student of fold ``all``: likewise, each case by those folds of the
            teacher that were not trained on it.
        targets_tta: cached targets are means over mirrored copies.
        targets_limit: GiB that the cached targets of a run's cases may take on disk.
        init: what a student's weights are before the first step: ``random``, or ``teacher``, see
            :mod:`medkd.networks.inheritance`.
        teachers: further teachers beside the first, named like it.
        confidence: voxels where the teacher's largest probability is below it are left out of the method's terms.
        mirror_axes: axes of the patch that training and test-time augmentation mirror; () is none, None the plan's.

    Raises:
        RunError: a value is outside of its limits.

    >>> TrainOptions(epochs=250).seed
    0
    >>> TrainOptions(epochs=0)
    Traceback (most recent call last):
        ...
    medkd.core.errors.RunError: epochs expects a whole number of at least 1, found 0; leave it out for the default.
    """

    configuration: str = "3d_fullres"
    patch_size: tuple[int, ...] | None = None
    width_divisor: int = 1
    save_every: int = 10
    targets: Literal["live", "cached", "out-of-fold"] = "live"
    targets_tta: bool = False
    targets_limit: float = 50.0
    init: Literal["random", "teacher"] = "random"
    teachers: tuple[str, ...] = ()
    confidence: float = 0.0
    mirror_axes: tuple[int, ...] | None = None

    whole_numbers: ClassVar[Mapping[str, int]] = {**RunOptions.whole_numbers, "width_divisor": 1, "save_every": 1}
    positive_numbers: ClassVar[tuple[str, ...]] = ("learning_rate", "targets_limit")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("--targets", self.targets, ("live", CACHED, OUT_OF_FOLD))
        check_choice("--init", self.init, ("random", "teacher"))
        check_share("confidence", self.confidence)
        if self.init == "teacher" and self.weights is not None:
            raise RunError("Expected --init teacher or --weights, found both; leave one of them out.")
        self._check_mirror_axes()
        patch = self.patch_size
        if patch is None:
            return
        sides = patch if isinstance(patch, (tuple, list)) else ()
        if not sides or not all(is_whole(side, 1) for side in sides):
            raise RunError(
                f"{option_name('patch_size')} expects whole numbers of at least 1, one per axis, found {patch!r}; "
                "leave it out for the default."
            )

    def _check_mirror_axes(self) -> None:
        axes = self.mirror_axes
        if axes is None:
            return
        numbers = isinstance(axes, tuple) and all(is_whole(axis, 0) for axis in axes)
        if not numbers or list(axes) != sorted(set(axes)):
            raise RunError(
                "--mirror-axes expects none, or numbers of axes in rising order (0 is the first axis of the patch), "
                f"found {axes!r}; leave it out for the plan's."
            )


def check_start(init: str, method: str | None) -> None:
    """See that a network that is to start from its teacher has one.

    Raises:
        RunError: it is trained alone.
    """
    if method is None and init == INIT_FROM_TEACHER:
        raise RunError(
            f"--init must be random, or {INIT_FROM_TEACHER} for a student that has a teacher, found '{init}'."
        )


def refuse_taught(options: RunOptions, who: str = "a network alone", names: Sequence[str] = TAUGHT) -> None:
    """Refuse options that have nothing to act on without a teacher, which would be passed over in silence.

    Args:
        options: of the training.
        who: is trained.
        names: of the options that need a teacher there.

    Raises:
        RunError: one of them has another value than its default.
    """
    for entry in fields(options):
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        if entry.name in names and getattr(options, entry.name) != default:
            raise RunError(
                f"{option_name(entry.name)} is about what a teacher teaches, but {who} has no teacher to follow; leave "
                "it out, or train with a method that follows a teacher."
            )


def check_share(name: str, value: float | None) -> None:
    """See that an option is a share of a whole; None passes.

    Raises:
        RunError: it is not a number from 0 to 1.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value <= 1):
        raise RunError(f"{option_name(name)} expects a number from 0 to 1, found {value!r}.")


def check_choice(option: str, found: object, known: tuple[object, ...]) -> None:
    """See that an option has one of the values that it may have.

    Raises:
        RunError: it has another one.
    """
    if found not in known:
        allowed = ", ".join(str(value) for value in known if value is not None)
        raise RunError(f"{option} must be one of {allowed}, found '{found}'.")


def check_tag(tag: str) -> None:
    """See that a tag is part of a folder's name and nothing else.

    Raises:
        RunError: it is empty, begins with a dot, or holds a separator of folders or a character that cannot be printed.
    """
    separated = any(mark in tag for mark in _SEPARATORS)
    if not tag.strip() or tag != tag.strip() or tag.startswith(".") or separated or not tag.isprintable():
        raise RunError(
            "--tag becomes part of a folder's name: expected text that can be printed, without '/' and '\\', not "
            f"beginning with '.' or a space nor ending with one, found {tag!r}; choose another text."
        )
