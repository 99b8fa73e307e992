"""The contract of everything that can predict or teach, and the only two places that ask what kind a folder is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import RunError
from medkd.core.plugins import each_installed, load_installed, resolve
from medkd.core.run import RUN_FILE
from medkd.core.serial import nearest
from medkd.models.packed import named_as_given, unpacked
from medkd.runtime.detection import DESCRIPTION
from medkd.runtime.package import FILE

if TYPE_CHECKING:  # what predicts with exported models does without torch
    from torch import nn

    from medkd.core.splits import Split

Task = str  # a name in medkd.tasks.TASKS
Checkpoint = Literal["final", "best"]
_GROUP = "medkd.models"  # of entry points
_DESCRIPTIONS = (RUN_FILE, FILE, DESCRIPTION)  # of a run, of an exported model, of an exported detector

MODEL_KINDS: dict[str, str | type[ModelFolder[Any]]] = {
    "exported": "medkd.models.exported:ExportedFolder",
    "bundle": "medkd.models.bundle.folder:BundleFolder",
    "described": "medkd.models.described:DescribedFolder",
    "nnunet_cascade": "medkd.models.nnunet.cascade:NnunetCascade",
    "nnunet": "medkd.models.nnunet.folder:NnunetFolder",
    "run": "medkd.models.run:SegmentationRun",
    "several": "medkd.models.several:SeveralTeachers",
    "exported_detector": "medkd.detection.exported:ExportedDetectorFolder",
    "detector_run": "medkd.detection.models:DetectorRun",
    "detector_weights": "medkd.detection.models:DetectorWeights",
}
"""Every kind of model by name, in the order in which a folder is shown to them: a class, or where to import it."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a model says of itself, and its networks once they were loaded.

    Attributes:
        networks: one per fold, on the CPU and in evaluation mode; none in a mere description.
        folds: their names.
    """

    networks: Sequence[Any] = ()
    folds: tuple[str, ...] = ()


T = TypeVar("T", bound=Trained)


class ModelFolder(ABC, Generic[T]):
    """A trained model on disk, whatever trained it.

    A new kind of model is a subclass in a file of its own, and a line in :data:`MODEL_KINDS` or a call of
    :func:`register_model`. Whoever predicts or teaches holds the object; nobody asks of what kind it is.

    Args:
        path: the folder (or file) that :meth:`recognises` accepted.

    Attributes:
        kind: name in :data:`MODEL_KINDS`.
        title: what it is in error texts, with its article: ``a MONAI bundle``.
        task: what its networks do.
        prepares: whether a data set without a plan is prepared like it; True for models trained elsewhere.
        merges: whether it is several models, of which only merged predictions of whole cases are to be had.
        path: the folder, absolute.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    task: ClassVar[Task]
    prepares: ClassVar[bool] = False
    merges: ClassVar[bool] = False

    def __init__(self, path: Path) -> None:
        self.path = Path(path).absolute()
        self._described: T | None = None

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Whether ``path`` holds a model of this kind, by the files that lie there; nothing large is read."""

    @property
    def name(self) -> str:
        """Short name of the model in the names of its students' runs."""
        return self.path.name

    @property
    def network_name(self) -> str | None:
        """The registry name of its networks; None where they are none of medkd's, or nobody says."""
        return None

    @property
    def recorded(self) -> str:
        """What the ``run.json`` of a student says of its teacher."""
        return str(self.path)

    def taught_as(self, results: Path) -> tuple[str, ...]:
        """What ``taught_by`` in the ``run.json`` of a student says.

        Args:
            results: results folder of the student's data set.
        """
        return (str(self.path),)

    @named_as_given()
    def describe(self) -> T:
        """What the model says of itself, without networks; read once.

        Raises:
            MedkdError: it cannot be rebuilt.
        """
        if self._described is None:
            self._described = self._describe()
        return self._described

    @named_as_given()
    def load(self, folds: Sequence[int | str] | None = None, *, checkpoint: Checkpoint = "final") -> T:
        """The model with its networks, on the CPU and in evaluation mode.

        Args:
            folds: 0-4 or ``"all"``; None takes every fold that has the checkpoint.
            checkpoint: ``"final"`` or ``"best"``.

        Raises:
            RunError: a fold is not trained, its weights do not fit, or they hold values that are not finite.
            MedkdError: anything else about the folder that does not fit.
        """
        loaded = self._load(folds, checkpoint)
        for network, fold in zip(loaded.networks, loaded.folds, strict=True):
            self._check_finite(network, fold)
        return loaded

    def network(self, fold: str) -> Any:
        """The network of one of the :attr:`teaching_folds`, on the CPU and in evaluation mode."""
        return self.load([fold], checkpoint=self.checkpoint_of(fold)).networks[0]

    @property
    def teaching_folds(self) -> tuple[str, ...]:
        """The folds that may teach: those that were trained to their end."""
        return self.folds()

    def checkpoint_of(self, fold: str) -> Checkpoint:
        """The checkpoint with which a fold teaches."""
        return "final"

    @abstractmethod
    def folds(self, checkpoint: Checkpoint = "final") -> tuple[str, ...]:
        """The names of the folds that have this checkpoint."""

    @abstractmethod
    def seen(self, fold: str, cases: Sequence[str], raw: Path) -> frozenset[str]:
        """Every case that a fold, or a teacher of its own, was trained on.

        Args:
            fold: one of the :attr:`teaching_folds`.
            cases: the training cases of the student's data set.
            raw: its raw folder, which may hold splits.

        Raises:
            RunError: nobody can say.
        """

    @abstractmethod
    def weights_file(self, fold: str) -> Path:
        """The file with the weights with which a fold teaches."""

    def weights_files(self, fold: str) -> tuple[Path, ...]:
        """All files with weights that take part where this fold teaches."""
        return (self.weights_file(fold),)

    @abstractmethod
    def check_fits(self, plan: Any, configuration: str, description: DatasetDescription) -> None:
        """Refuse to teach students that see another input, or mean something else by their outputs.

        Args:
            plan: of the student, a plan of the model's task.
            configuration: of the student.
            description: of the student's data set.

        Raises:
            RunError: the first thing that differs, and what to do.
        """

    def cleared(self, raw: Path) -> str:
        """What else helps, in the words of a sentence's end, where cases of a data set count as seen; by itself
        nothing.
        """
        return ""

    def remedy(self, dataset: str) -> str:
        """What to do where a student's preprocessing is not the model's."""
        return f"train the teacher with the plan of {dataset}"

    def splits(self, cases: Sequence[str], raw: Path) -> list[Split] | None:
        """The folds that the model was trained with, for students to share; None where it has none of its own."""
        return None

    @abstractmethod
    def _describe(self) -> T: ...

    @abstractmethod
    def _load(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> T: ...

    def _check_finite(self, network: nn.Module, fold: str) -> None:
        import torch

        for name, value in network.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise RunError(
                    f"{self.path}: the weights of fold {fold} hold values that are not finite ({name}), so every "
                    "prediction would be noise; train the fold again, or take another checkpoint."
                )


def register_model(name: str, kind: str | type[ModelFolder[Any]]) -> None:
    """Add a kind of model; it is asked after those that are there.

    Args:
        name: its name.
        kind: the class, or ``module:Class``, which is imported when a folder is looked at.
    """
    if name in MODEL_KINDS:
        raise ValueError(f"model kind '{name}' is registered twice")
    MODEL_KINDS[name] = kind


def model_kinds() -> Iterator[type[ModelFolder[Any]]]:
    """The classes in :data:`MODEL_KINDS` in order, imported as they are reached, then those of installed packages
    (entry points of the group ``medkd.models``).
    """
    for kind in list(MODEL_KINDS.values()):
        yield resolve(kind) if isinstance(kind, str) else kind
    found: list[type[ModelFolder[Any]]] = []
    each_installed(_GROUP, lambda point: found.append(load_installed(point)))
    yield from found


@named_as_given()
def open_model(path: Path | str, task: Task | None = None) -> ModelFolder[Any]:
    """The model in a folder.

    Args:
        path: run folder, model folder of nnU-Net v2, MONAI bundle, folder with a ``teacher.json``, exported model, or a
            detector's weights; a ``.zip`` of one is unpacked for as long as the process lives.
        task: that it must do; None for any.

    Raises:
        RunError: there is none of these, or it does something else.
    """
    given, path = path, unpacked(Path(path))
    try:
        kind = kind_of(path, task)
        known = "" if kind is not None else _titles(None)
    except ImportError as error:  # nothing but what predicts with exported models is installed
        if (path / DESCRIPTION).is_file():
            raise RunError(
                f"{given} is an exported detector, which needs torch around its network ({error}); install medkd with "
                "torch."
            ) from error
        raise RunError(
            f"{given} is no exported model, and this installation can open no other ({error}); install medkd with "
            "torch, or export the model with medkd_export."
        ) from error
    if kind is not None and task in (None, kind.task):
        return kind(path)
    if kind is not None:
        raise RunError(f"{given} is {kind.title}, which does {kind.task}, expected a model for {task}.")
    raise RunError(
        f"{given} is not a medkd run folder (it has no {RUN_FILE}), nor any other model that medkd knows "
        f"({known}); give a folder <root>/results/DATASET/RUN or such a model."
    )


@named_as_given()
def find_model(text: str, results: Path, configuration: str, task: Task) -> ModelFolder[Any]:
    """The model that a TEACHER argument names.

    Args:
        text: a model's folder (or a detector's weights), a run's name, or a network with a finished run of this
            configuration.
        results: results folder of the data set.
        configuration: of the student.
        task: of the student.

    Raises:
        RunError: there is no such model, or it does not do this task; the existing runs are named.
    """
    other = None
    for path in (unpacked(Path(text)), results / text, results / f"{text}__{configuration}"):
        kind = kind_of(path, task)
        if kind is not None and kind.task == task:
            return kind(path)
        other = other or kind
    if other is not None:
        raise RunError(
            f"Teacher '{text}' is {other.title}, which does {other.task}, but the data set {results.name} is one for "
            f"{task}; name a teacher for {task}."
        )
    known = sorted(p.parent.name for p in results.glob(f"*/{RUN_FILE}")) if results.is_dir() else []
    raise RunError(
        f"Teacher '{text}' is neither a model folder ({_titles(task)}) nor a network trained for {results.name} with "
        f"{configuration}.{nearest(text, known)} Runs found: {', '.join(known) or 'none'}; train it with medkd_train "
        "first."
    )


def kind_of(path: Path, task: Task | None = None) -> type[ModelFolder[Any]] | None:
    """The first kind that recognises a folder and does the task; else the first that recognises it.

    Raises:
        RunError: the folder holds the descriptions of two models, so that nobody knows which one is meant.
    """
    other = None
    if not path.exists():
        return None
    described = [name for name in _DESCRIPTIONS if (path / name).is_file()]
    if len(described) > 1:
        raise RunError(
            f"{path} holds {' and '.join(described)}, which describe two models; keep each in a folder of its own."
        )
    for kind in model_kinds():
        if kind.recognises(path):
            if task in (None, kind.task):
                return kind
            other = other or kind
    return other


def model_at(path: Path) -> ModelFolder[Any] | None:
    """The model in a folder, if it is one of any kind; :func:`open_model` where it must be.

    Raises:
        RunError: as :func:`kind_of`.
    """
    kind = kind_of(path)
    return None if kind is None else kind(path)


def _titles(task: Task | None) -> str:
    return ", ".join(kind.title for kind in model_kinds() if task in (None, kind.task))
