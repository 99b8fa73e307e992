"""A detector that needs no training: it finds what is brighter than a threshold, its only weight; and run folders that
hold it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from medkd.core.checkpoint import save_checkpoint
from medkd.core.dataset import DatasetDescription
from medkd.core.files import write_json
from medkd.core.run import Budget, NetworkSpec, RunDescription
from medkd.core.serial import save
from medkd.detection.base import DETECTORS, Detections, Detector, DetectorEntry, DetectorSpec
from medkd.detection.job import DetectionJob
from medkd.detection.plan import DetectionPlan

NAME = "bright_spots"
CALLS: list[int] = []
OVERLAPS: list[float | None] = []


class BrightSpots(Detector):
    """Boxes around connected bright regions; the score is their mean intensity."""

    family = "torchvision"
    overlap = 0.5
    taps = ()

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.threshold = nn.Parameter(torch.tensor(0.5))

    def detect(
        self, images: Tensor, score: float = 0.001, overlap: float | None = None, most: int = 300
    ) -> list[Detections]:
        """As promised; the overlap plays no part."""
        CALLS.append(len(images))
        OVERLAPS.append(overlap)
        return [self._one(image.mean(0).cpu().numpy(), score, most) for image in images]

    def _one(self, image: np.ndarray, score: float, most: int) -> Detections:
        labels, _ = ndimage.label(image > self.threshold.item())
        found = []
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            mean = float(image[rows, columns][labels[rows, columns] == number].mean())
            found.append((mean, [columns.start, rows.start, columns.stop, rows.stop]))
        found = sorted((f for f in found if f[0] >= score), key=lambda f: -f[0])[:most]
        boxes = torch.tensor([b for _, b in found], dtype=torch.float32).reshape(-1, 4)
        return Detections(boxes, torch.tensor([s for s, _ in found]), torch.zeros(len(found), dtype=torch.long))


def register() -> None:
    """Enter the detector once."""
    if NAME not in DETECTORS:
        DETECTORS.register(NAME)(DetectorEntry("torchvision", BrightSpots, "for tests"))


def make_run(
    root: Path,
    raw: Path,
    run: str = f"{NAME}__detection",
    *,
    size: int = 96,
    folds: tuple[float, ...] = (0.5,),
    method: str | None = None,
    teacher: str | None = None,
) -> Path:
    """A run folder with a checkpoint per fold; ``folds`` are their thresholds."""
    register()
    description = DatasetDescription.load(raw / "dataset.json")
    folder = root / "results" / raw.name / run
    spec = NetworkSpec(
        name=run.split("__")[0] if run.startswith(NAME) else NAME,
        in_channels=3,
        num_outputs=len(description.categories),
        patch_size=(size, size),
    )
    budget = Budget(3, 4, 2, 0.01, 0)
    save(
        folder / "run.json",
        RunDescription(
            dataset=raw.name,
            configuration="detection",
            network=spec,
            budget=budget,
            mirror_axes=(),
            method=method,
            teacher=teacher,
        ),
    )
    DetectionPlan(dataset=raw.name, categories=description.categories, image_size=size, batch_size=2).save(
        folder / "plans.json"
    )
    description.save(folder / "dataset.json")
    for fold, threshold in enumerate(folds):
        save_checkpoint(
            folder / f"fold_{fold}" / "checkpoint_final.pt",
            {"schema": 1, "network": {"threshold": torch.tensor(threshold)}},
        )
    return folder


def make_job(run: Path, store: Path, val: tuple[str, ...], fold: int = 0) -> DetectionJob:
    """The job of a trained fold."""
    plan = DetectionPlan.load(run / "plans.json")
    detector = BrightSpots(DetectorSpec(NAME, plan.categories, plan.image_size))
    folder = run / f"fold_{fold}"
    write_json(folder / "split.json", {"train": [], "val": list(val)})
    return DetectionJob(
        detector=detector,
        distiller=None,
        plan=plan,
        store=store,
        train=(),
        val=val,
        budget=Budget(1, 1, 1, 0.1, 0),
        folder=folder,
        device=torch.device("cpu"),
    )
