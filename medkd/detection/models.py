"""Detectors as models: runs of medkd, and weights that were trained elsewhere (``best.pt`` beside a
``teacher.json``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from medkd.core.checkpoint import load_checkpoint
from medkd.core.dataset import DatasetDescription
from medkd.core.dataset_keys import check_categories
from medkd.core.device import pick_device
from medkd.core.errors import DataError, LeakError, RunError
from medkd.core.files import lies_within, read_json
from medkd.core.run import (
    DATASET_FILE,
    DETECTION,
    PLANS_FILE,
    RUN_FILE,
    RunDescription,
    is_detection,
)
from medkd.core.serial import load
from medkd.core.splits import Split
from medkd.detection.base import DETECTORS, Detector, DetectorSpec
from medkd.detection.families import register_detectors
from medkd.detection.plan import DetectionPlan
from medkd.detection.store import DetectionStore
from medkd.detection.weights import load_into, read_detector_weights
from medkd.io.radiographs import Scaling, checked_scaling, scaling_of
from medkd.models.base import Checkpoint, ModelFolder, Trained
from medkd.models.limits import LARGEST_IMAGE, check_size
from medkd.models.own_run import CHECKPOINTS, OwnRun
from medkd.models.pretrained import refuse_leak, seen_at_place
from medkd.models.stated import named_cases
from medkd.runtime.detection import check_sides

FILE = "teacher.json"
GIVEN = "given"
"""The only fold of a detector that nobody cross-validated."""

_WEIGHTS = (".pt", ".pth")


@dataclass(frozen=True)
class DetectionRun:
    """A run folder of a detector: description, plan and data set."""

    path: Path
    run: RunDescription
    plan: DetectionPlan
    dataset: DatasetDescription

    @classmethod
    def load(cls, path: Path) -> DetectionRun:
        """Read ``run.json``, ``plans.json`` and ``dataset.json``.

        Raises:
            RunError: the folder is not the run folder of a detector.
        """
        path = Path(path)
        if not (path / RUN_FILE).exists():
            raise RunError(
                f"{path} is not a medkd run folder (it has no {RUN_FILE}); give a folder <root>/results/DATASET/RUN."
            )
        run = load(RunDescription, path / RUN_FILE)
        if run.configuration != DETECTION:
            raise RunError(
                f"{path} holds the segmentation network {run.network.name}, expected a detector; use medkd_predict for "
                "scans."
            )
        return cls(path, run, DetectionPlan.load(path / PLANS_FILE), DatasetDescription.load(path / DATASET_FILE))

    @property
    def spec(self) -> DetectorSpec:
        """How the detector was built."""
        size = self.run.network.patch_size[0]
        plan = self.plan
        return DetectorSpec(self.run.network.name, plan.categories, size, plan.anchor_scale, plan.sides)

    def fold(self, fold: int | str) -> Path:
        """Folder of one fold (0-4 or ``all``)."""
        return self.path / f"fold_{fold}"


@dataclass(frozen=True, kw_only=True)
class DetectorFile:
    """``teacher.json`` beside weights that were trained elsewhere: what they do not tell themselves.

    Attributes:
        network: registry name of the detector, ``yolov8l``.
        categories: the classes in order, named as in the data set.
        train: the case ids that it was trained on; an empty list states that none of the data set's cases was among
            them.
        weights: the file, beside the description.
        image_size: side of the input that it was trained with.
        anchor_scale: see :class:`~medkd.detection.plan.DetectionPlan`; a detector with anchors must say it.
        sides: see :class:`~medkd.detection.base.DetectorSpec`.
        scaling: see :class:`TrainedDetector`.
    """

    network: str
    categories: tuple[str, ...]
    train: tuple[str, ...]
    weights: str = "best.pt"
    image_size: int = 640
    anchor_scale: float | None = None
    sides: tuple[int, int] | None = None
    scaling: str = "percentile"
    schema: int = 1


@dataclass(frozen=True, kw_only=True)
class TrainedDetector(Trained):
    """Detectors and all that is needed to predict with them.

    Attributes:
        spec: how they are built: network, categories in order, side of the input.
        scaling: how images of more than 8 bits become 8, as for those that they were trained on.
    """

    spec: DetectorSpec
    scaling: Scaling = "percentile"

    @property
    def categories(self) -> tuple[str, ...]:
        """The classes that they know, in order."""
        return self.spec.categories


class DetectorFolder(ModelFolder[TrainedDetector]):
    """A trained detector."""

    task = "detection"

    def check_fits(self, plan: DetectionPlan, configuration: str, description: DatasetDescription) -> None:
        """Teacher and student must mean the same by their outputs.

        Raises:
            RunError: the names of the classes, or their order, differ.
        """
        self.check_categories(plan.categories)

    def check_categories(self, categories: Sequence[str]) -> None:
        """The classes must be those of the data set, in its order.

        Raises:
            RunError: they are not.
        """
        theirs, ours = list(self.describe().categories), list(categories)
        if theirs == ours:
            return
        what = "the same classes in another order" if sorted(theirs) == sorted(ours) else "other classes"
        raise RunError(
            f"The teacher {self.path.name} does not fit: it knows {what} ({', '.join(theirs)}) than the data set "
            f"({', '.join(ours)}); train one for this data set."
        )

    def place(self, device: torch.device | str | None) -> torch.device:
        """Where its detectors compute: as is asked, else CUDA where present."""
        return pick_device(device)


class DetectorRun(OwnRun, DetectorFolder):
    """A run folder ``<root>/results/DATASET/RUN`` of a detector."""

    kind = "detector_run"
    title = "a run folder of a detector"
    run: DetectionRun

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.run = DetectionRun.load(path)
        check_size("a patch_size", self.run.run.network.patch_size, LARGEST_IMAGE, str(self.path / RUN_FILE))

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether there is a ``run.json`` of a detector."""
        return is_detection(path)

    def contents(self, prepared: Path) -> Mapping[str, str]:
        """Those of the stored images."""
        try:
            entries = DetectionStore(prepared / DETECTION).index.cases
        except DataError:
            return {}
        return {case: entry.pixels for case, entry in entries.items()}

    def _describe(self) -> TrainedDetector:
        scaling = scaling_of(self.run.dataset.extra, str(self.path / DATASET_FILE))
        return TrainedDetector(folds=self.folds(), spec=self.run.spec, scaling=scaling)

    def _load(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> TrainedDetector:
        names = self.wanted_folds(folds, checkpoint)
        name = self.run.run.network.name
        module = self.run.run.modules.get(name)
        register_detectors("" if module else name)
        DETECTORS.require(name, module, str(self.path))
        networks = [self._detector(fold, checkpoint) for fold in names]
        return replace(self.describe(), networks=networks, folds=names)

    def _detector(self, fold: str, checkpoint: Checkpoint) -> Detector:
        path, network = self.run.fold(fold) / CHECKPOINTS[checkpoint], self.run.run.network.name
        content = load_checkpoint(path)
        if "network" not in content:
            raise RunError(f"{path} is not a detector's checkpoint (it has no 'network'); train this fold again.")
        detector = DETECTORS[network].build(self.run.spec)
        try:
            detector.load_state_dict(content["network"])
        except RuntimeError as error:
            first = str(error).splitlines()[1:2] or [str(error)]
            raise RunError(
                f"{path} does not fit {network} ({first[0].strip()}); was plans.json or run.json edited?"
            ) from error
        return detector.eval()


class DetectorWeights(DetectorFolder):
    """Weights of a detector that was trained elsewhere: the file, or its folder, with a ``teacher.json``."""

    kind = "detector_weights"
    title = "a detector's weights (best.pt) with a teacher.json beside them"

    def __init__(self, path: Path) -> None:
        super().__init__(path if path.is_dir() else path.parent)
        if not (self.path / FILE).is_file():
            raise RunError(
                f"{path} does not say which images it was trained on, so nobody knows whether it may teach; put a "
                f'{FILE} beside it, like {{"network": "yolov8l", "categories": ["fracture"], "train": ["case_1", …], '
                f'"weights": "{path.name}"}}.'
            )
        self.described = load(DetectorFile, self.path / FILE)
        check_categories(self.described.categories, f"{self.path / FILE}: categories")
        check_size("an image_size", (self.described.image_size,), LARGEST_IMAGE, str(self.path / FILE))
        check_sides(self.described.sides, self.described.image_size, str(self.path / FILE))
        self.file = self.path / self.described.weights if path.is_dir() else path.absolute()
        if not lies_within(self.file, self.path):
            raise RunError(
                f"{self.path / FILE}: the weights '{self.described.weights}' lie outside of the folder; put them "
                "beside the description."
            )
        if self.file.name != Path(self.described.weights).name:
            raise RunError(
                f"{self.path / FILE} describes {self.described.weights}, not {self.file.name}; correct 'weights'."
            )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether it is a file of weights, or a folder whose ``teacher.json`` lists ``categories``."""
        if path.suffix in _WEIGHTS:
            return True
        stated = read_json(path / FILE) if (path / FILE).is_file() else None
        return isinstance(stated, Mapping) and "categories" in stated

    @property
    def network_name(self) -> str:
        """What the description says."""
        return self.described.network

    def folds(self, checkpoint: Checkpoint = "final") -> tuple[str, ...]:
        """The one that was given."""
        return (GIVEN,)

    def seen(self, fold: str, cases: Sequence[str], raw: Path) -> frozenset[str]:
        """The images that the description lists; they must be named as the data set names its own."""
        return named_cases(self.described.train, cases, self.path / FILE)

    def weights_file(self, fold: str) -> Path:
        """The file that was given, or that the description names."""
        return self.file

    def _describe(self) -> TrainedDetector:
        found = self.described
        scale = found.anchor_scale or DetectorSpec.anchor_scale
        spec = DetectorSpec(found.network, found.categories, found.image_size, scale, found.sides)
        return TrainedDetector(folds=(GIVEN,), spec=spec, scaling=checked_scaling(found.scaling, str(self.path / FILE)))

    def _load(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> TrainedDetector:
        register_detectors(self.described.network)
        spec = self.describe().spec
        state, names = read_detector_weights(self.file)
        if names is not None and names != spec.categories:
            raise RunError(
                f"{self.file} was trained for the classes {', '.join(names)}, but {FILE} says "
                f"{', '.join(spec.categories)}."
            )
        detector = DETECTORS[spec.name].build(spec)
        if detector.anchors and self.described.anchor_scale is None:
            raise RunError(
                f"{self.path / FILE}: {spec.name} has anchors, but 'anchor_scale' is missing; add the side of the "
                "smallest anchor in strides with which it was trained (of a medkd run it stands in plans.json; as "
                "published it is 4)."
            )
        load_into(detector, state, self.file)
        return replace(self.describe(), networks=[detector.eval()])


def place_of(model: ModelFolder[TrainedDetector], device: torch.device | str | None) -> torch.device:
    """Where the detectors of a model compute: as is asked, else CUDA where present; an exported one knows better.

    Raises:
        RunError: the device is not there, or the model cannot compute on it.
    """
    return model.place(device) if isinstance(model, DetectorFolder) else pick_device(device)


def seen_by_start(
    path: Path,
    fold: int | str,
    split: Split,
    cases: Sequence[str],
    raw: Path,
    patients: Mapping[str, str] | None = None,
    categories: Sequence[str] | None = None,
) -> frozenset[str]:
    """Every case that weights which a detector starts from have seen, as far as their place tells; they pass the guard
    of teachers.

    Weights in a fold folder of medkd's (also those in ``ultralytics/weights``) have seen what its ``split.json`` says;
    weights beside a ``teacher.json`` what that says; nobody knows about others, for example a backbone from ImageNet,
    which has seen nothing here.

    Args:
        path: the file.
        fold: which is going to be trained.
        split: its cases.
        cases: of the data set.
        raw: its raw folder.
        patients: case → patient, where known.
        categories: of the data set; a detector for just these classes that does not say what it has seen is refused.

    Raises:
        LeakError: they have seen a case on which the fold is judged, or may have.
    """
    seen = seen_at_place(path, cases, raw)
    if seen is None and categories is not None and split.val and _classes_of(path) == set(categories):
        raise LeakError(
            f"{path} finds the very classes of this data set and does not say on which images it was trained, so it "
            f'may have seen those on which fold {fold} is judged; put a {FILE} with "train" beside it that names them.'
        )
    known = seen or frozenset()
    refuse_leak(path, known, fold, split, "--backbone-weights" if categories is None else "--weights", patients)
    return known


def _classes_of(path: Path) -> set[str]:
    """The classes that a file of a whole detector names; none for others."""
    if path.suffix not in _WEIGHTS:
        return set()
    try:
        names = read_detector_weights(path)[1]
    except RunError:  # whoever loads it says what is wrong with it
        names = None
    return set(names or ())
