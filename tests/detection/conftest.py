"""Fixtures of the tests of the training commands."""

from __future__ import annotations

from pathlib import Path

import pytest

import medkd.detection.task as task
from medkd.detection.base import DETECTORS, DetectorEntry
from medkd.detection.prepare import plan_and_preprocess_detection
from tests.detection.builders import make_dataset
from tests.detection.quick import JOBS, STUB, Stub, write_down


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectors are not trained; their jobs are noted."""
    if STUB not in DETECTORS:
        DETECTORS.register(STUB)(DetectorEntry("torchvision", Stub, "for tests"))
    monkeypatch.setattr(task, "fit", write_down)
    JOBS.clear()


@pytest.fixture
def tiny(tmp_path: Path, quick: None) -> Path:
    """A root with a prepared data set of ten images."""
    make_dataset(tmp_path, images=10, negatives=2)
    plan_and_preprocess_detection(502, root=tmp_path, workers=1)
    return tmp_path
