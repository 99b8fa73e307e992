"""Trained detectors, read from a run folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from medkd.core.checkpoint import load_checkpoint
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import RunError
from medkd.core.run import BEST, DATASET_FILE, DETECTION, FINAL, PLANS_FILE, RUN_FILE, RunDescription
from medkd.core.serial import load
from medkd.detection.base import DETECTORS, Detector, DetectorSpec
from medkd.detection.plan import DetectionPlan

CHECKPOINTS = {"final": FINAL, "best": BEST}
_FAMILIES = {"medkd.detection.yolo": "ultralytics", "medkd.detection.tv": "torchvision"}
_log = logging.getLogger(__name__)


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
        return DetectorSpec(self.run.network.name, self.plan.categories, size, self.plan.anchor_scale)

    def fold(self, fold: int | str) -> Path:
        """Folder of one fold (0-4 or ``all``)."""
        return self.path / f"fold_{fold}"

    def folds(self, wanted: Sequence[int | str] | None, checkpoint: str = "final") -> list[str]:
        """The wanted folds as text, or all that have the checkpoint.

        Raises:
            RunError: no fold has it.
        """
        if wanted:
            return [str(fold) for fold in wanted]
        file = CHECKPOINTS[checkpoint]
        found = sorted(p.name.removeprefix("fold_") for p in self.path.glob("fold_*") if (p / file).exists())
        if not found:
            raise RunError(f"{self.path}: no fold has a {file}; train one to its end first.")
        return found


def load_detector(
    run: Path | DetectionRun, fold: int | str, device: torch.device | str = "cpu", *, checkpoint: str = "final"
) -> Detector:
    """Build a run's detector and give it the weights of a fold; in evaluation mode.

    Args:
        run: run folder, or one that was read.
        fold: 0-4 or ``all``.
        device: where to put it.
        checkpoint: ``"final"`` or ``"best"``.

    Raises:
        RunError: the run or checkpoint is missing, damaged, or does not fit the detector; its family is not installed.
    """
    run = run if isinstance(run, DetectionRun) else DetectionRun.load(run)
    name = run.run.network.name
    module = run.run.modules.get(name)
    register_detectors("" if module else name)
    DETECTORS.require(name, module, str(run.path))
    path = run.fold(fold) / CHECKPOINTS[checkpoint]
    content = load_checkpoint(path)
    if "network" not in content:
        raise RunError(f"{path} is not a detector's checkpoint (it has no 'network'); train this fold again.")
    detector = DETECTORS[run.run.network.name].build(run.spec)
    try:
        detector.load_state_dict(content["network"])
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise RunError(
            f"{path} does not fit {run.run.network.name} ({first[0].strip()}); was plans.json or run.json edited?"
        ) from error
    return detector.to(device).eval()


def register_detectors(name: str = "") -> None:
    """Import the families of detectors, which enter theirs into :data:`~medkd.detection.base.DETECTORS`.

    Args:
        name: nothing is imported where this detector is registered already.

    Raises:
        RunError: the named detector is unknown, and a family's library is not installed.
    """
    if name and name in DETECTORS:
        return
    absent = []
    for module, library in _FAMILIES.items():
        if find_spec(library) is None or find_spec("torchvision") is None:
            absent.append(library)
            continue
        import_module(module)
    if name and name not in DETECTORS and absent:
        raise RunError(
            f"The detector '{name}' is not known; {' and '.join(absent)} may be missing: pip install "
            "'medkd[detection]'."
        )
