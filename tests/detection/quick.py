"""A detector that is trained by being written down, and what the tests of the training commands share."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from medkd.core.checkpoint import save_checkpoint
from medkd.core.features import Tap
from medkd.core.files import write_json
from medkd.core.run import FINAL
from medkd.detection.base import Detections, Detector, DetectorSpec
from medkd.detection.job import DetectionJob
from medkd.detection.options import DetectorOptions

NAME = "Dataset502_Tiny"
STUB = "quick_stub"
JOBS: list[DetectionJob] = []


class Stub(Detector):
    """A detector that finds nothing and is trained by being written down."""

    family = "torchvision"
    taps = (Tap(name="p3", channels=4, stride=(8, 8), module="neck", stage="neck"),)

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.neck = nn.Conv2d(3, 4, 1)
        self.head = nn.Conv2d(4, len(spec.categories), 1)

    def detect(
        self, images: Tensor, score: float = 0.001, overlap: float | None = None, most: int = 300
    ) -> list[Detections]:
        none = torch.zeros(0)
        return [Detections(none.reshape(0, 4), none, none.long()) for _ in images]


def write_down(job: DetectionJob) -> None:
    JOBS.append(job)
    save_checkpoint(job.folder / FINAL, {"schema": 1, "network": job.detector.state_dict()})


def options(root: Path, **changes: object) -> DetectorOptions:
    values: dict = {
        "root": root,
        "epochs": 2,
        "iterations_per_epoch": 3,
        "batch_size": 2,
        "workers": 0,
        "device": "cpu",
        "validate": False,
    }
    return DetectorOptions(**{**values, **changes})


def results(root: Path) -> Path:
    return root / "results" / NAME


def given_weights(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(77)
    content: dict = {"network": STUB, "categories": ["fracture"], "train": [], "weights": "best.pt", **changes}
    torch.save(Stub(DetectorSpec(STUB, tuple(content["categories"]), 64)).state_dict(), folder / "best.pt")
    write_json(folder / "teacher.json", {k: v for k, v in content.items() if v is not None})
    return folder
