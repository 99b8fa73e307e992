"""One of several processes that train detectors together: ``python -m tests.detection.ranks_worker TRAININGS.json``.

The file holds a list of trainings: the arguments of :func:`medkd.detection.task.train`, or with a teacher of
``train_distill``, one after another.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from medkd.core.files import read_json
from medkd.detection.base import DetectorSpec
from medkd.detection.options import DetectorOptions
from medkd.detection.task import train, train_distill
from medkd.detection.tv.faster_rcnn import FasterRCNN
from medkd.training.logs import RunLog
from tests.detection.tv.builders import build_narrow, few


@dataclass(frozen=True)
class Training:
    """A training that both sides do, under its own tag."""

    tag: str
    network: str
    teacher: str | None = None
    method: str = "none"
    options: dict[str, Any] = field(default_factory=dict)

    def arguments(self, root: Path, side: str) -> dict[str, Any]:
        options = {
            "root": str(root),
            "epochs": 1,
            "iterations_per_epoch": 3,
            "batch_size": 4,
            "workers": 0,
            "device": "cpu",
            "validate": False,
            "tag": f"{self.tag}-{side}",
            **self.options,
        }
        taught = {} if self.teacher is None else {"teacher": self.teacher, "method": self.method}
        return {"network": self.network, "options": options, **taught}


def run_all(trainings: list[dict[str, Any]]) -> None:
    """Train narrow detectors as the list says; nobody draws curves, which takes longer than the steps."""
    with pytest.MonkeyPatch.context() as patch:
        build_narrow(patch)
        patch.setattr(FasterRCNN, "__init__", _look_at_few)
        patch.setattr(RunLog, "draw", lambda self: None)
        for training in trainings:
            _run(training)


def _look_at_few(detector: FasterRCNN, spec: DetectorSpec, backbone: str, made: Any = FasterRCNN.__init__) -> None:
    """In place of the constructor."""
    made(detector, spec, backbone)
    few(detector)


def _run(training: dict[str, Any]) -> None:
    options = DetectorOptions(**{**training["options"], "root": Path(training["options"]["root"])})
    if "teacher" in training:
        train_distill(502, training["teacher"], training["network"], training["method"], 0, options)
    else:
        train(502, training["network"], 0, options)


if __name__ == "__main__":
    run_all(read_json(Path(sys.argv[1]))["trainings"])
