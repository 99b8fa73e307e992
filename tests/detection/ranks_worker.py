"""One of several processes that train detectors together: ``python -m tests.detection.ranks_worker TRAININGS.json``.

The file holds a list of trainings: the arguments of :func:`medkd.detection.task.train`, or with a teacher of
``train_distill``, one after another.
"""

from __future__ import annotations

import sys
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
