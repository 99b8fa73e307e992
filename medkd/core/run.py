"""A run on disk: what was trained, on what, and how. A run folder holds all that prediction needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import RunError
from medkd.core.files import read_json
from medkd.core.plan import Architecture, Plan
from medkd.core.serial import load
from medkd.core.speed import USUAL, Speed

RUN_FILE = "run.json"
PLANS_FILE = "plans.json"
DATASET_FILE = "dataset.json"
SPLIT_FILE = "split.json"
TEACHER_FILE = "teacher.json"  # beside a model from elsewhere: what it does not say itself
UNFINISHED = "unfinished"  # file beside preprocessed cases, as long as a preparation makes some; a kill leaves it
LATEST = "checkpoint_latest.pt"
BEST = "checkpoint_best.pt"
FINAL = "checkpoint_final.pt"
VALIDATION_SUMMARY = Path("validation") / "summary.json"
CROSS_VALIDATION = "crossval"


DETECTION = "detection"
"""The configuration of every run of a detector."""


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """What is needed to build a network.

    Attributes:
        name: registry name.
        in_channels: image channels.
        num_outputs: output channels.
        patch_size: the training patch, which also fixes the rank (2D or 3D).
        architecture: the planned shape, for networks that take theirs from the plan.
        width_divisor: divides the channels of a planned network.
        deep_supervision: whether training outputs logits at several resolutions.
    """

    name: str
    in_channels: int
    num_outputs: int
    patch_size: tuple[int, ...]
    architecture: Architecture | None = None
    width_divisor: int = 1
    deep_supervision: bool = False


@dataclass(frozen=True)
class Budget:
    """Length of training and size of a step."""

    epochs: int
    iterations_per_epoch: int
    batch_size: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class StartWeights:
    """What a network's first weights were.

    Attributes:
        source: ``imagenet``, ``coco`` or ``file``.
        file: where they were read from.
        origin: library and name of the file there, or ``file``.
        sha256: of the file, hexadecimal.
    """

    source: str
    file: str
    origin: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """``run.json``.

    Attributes:
        dataset: full data set name.
        configuration: ``2d``, ``3d_fullres`` or ``3d_lowres``; :data:`DETECTION` for a detector.
        network: the network that was trained (the student, when distilled).
        budget: length of training.
        mirror_axes: axes (of the patch) that training mirrored and test-time augmentation may mirror.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        speed: switches of torch's that the steps had.
        method: distillation method, or None for a network trained alone.
        method_parameters: what was set for the method, by ``method.parameter``.
        teacher: short name or folder of the teacher, or None; several may have one short name.
        taught_by: each model that taught: its run folder's name where it is a run of the same data set, else its
            folder; empty in files of older versions.
        targets: ``live`` where the teacher saw every patch, ``cached`` where its outputs were predicted beforehand,
            ``out-of-fold`` where those folds did that had not seen the case.
        targets_tta: whether cached outputs are means over mirrored copies.
        backbone_weights: file of weights that a detector started from; None for random ones.
        weights: that training started from; None for random ones, and where ``backbone_weights`` says it.
        init: ``teacher`` where a student's first weights were fitted to its teacher, else ``random``.
        random_layers: layers of such a student that have no counterpart in its teacher, and began with random weights.
        unlabelled_share: of the samples that came from scans without labels; None is their share among all cases.
        labels: ``given``, or ``none`` where no label was looked at.
        confidence: least probability of the teacher where its method counts.
        protocol: the published protocol that was followed, where it says anything about this training's rows, or was
            asked for.
        published: setting or parameter that the protocol's rows gave → value and source.
        modules: name of a network or method from outside the package → the module that registered it. It is shown to
            the user, and never imported.
    """

    dataset: str
    configuration: str
    network: NetworkSpec
    budget: Budget
    mirror_axes: tuple[int, ...]
    precision: str = "fp32"
    speed: Speed = USUAL
    method: str | None = None
    method_parameters: Mapping[str, Any] = field(default_factory=dict)
    teacher: str | None = None
    taught_by: tuple[str, ...] = ()
    targets: str = "live"
    targets_tta: bool = False
    backbone_weights: str | None = None
    weights: StartWeights | None = None
    init: str = "random"
    random_layers: tuple[str, ...] = ()
    unlabelled_share: float | None = None
    labels: str = "given"
    confidence: float = 0.0
    protocol: str | None = None
    published: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    schema: int = 3
    oldest: ClassVar[int] = 1


@dataclass(frozen=True)
class RunFolder:
    """A run folder that was read: description, plan and data set."""

    path: Path
    run: RunDescription
    plan: Plan
    dataset: DatasetDescription

    @classmethod
    def load(cls, path: Path) -> RunFolder:
        """Read ``run.json``, ``plans.json`` and ``dataset.json``.

        Raises:
            RunError: the folder is not a run folder.
        """
        path = Path(path)
        if not (path / RUN_FILE).exists():
            raise RunError(
                f"{path} is not a medkd run folder (it has no {RUN_FILE}); give a folder <root>/results/DATASET/RUN."
            )
        return cls(
            path,
            load(RunDescription, path / RUN_FILE),
            Plan.load(path / PLANS_FILE),
            DatasetDescription.load(path / DATASET_FILE),
        )

    def fold(self, fold: int | str) -> Path:
        """Folder of one fold (0-4 or ``all``)."""
        return self.path / f"fold_{fold}"

    def trained_folds(self) -> list[str]:
        """The folds that have a final checkpoint, as text."""
        return sorted(p.name.removeprefix("fold_") for p in self.path.glob("fold_*") if (p / FINAL).exists())


def is_detection(path: Path) -> bool:
    """Whether a folder is the run folder of a detector; False for anything else, also for what is no run folder.

    Raises:
        DataError: its ``run.json`` cannot be read.
    """
    file = Path(path) / RUN_FILE
    data = read_json(file) if file.exists() else None
    return isinstance(data, Mapping) and data.get("configuration") == DETECTION
