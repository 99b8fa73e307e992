"""Detectors are timed together on one radiograph."""

from __future__ import annotations

from pathlib import Path

from medkd.core.timing import TIMINGS_FILE, Timings
from medkd.detection.latency import measure_images
from tests.detection import stub
from tests.detection.builders import make_dataset


def test_a_detector_is_timed_as_it_predicts(tmp_path: Path) -> None:
    raw = make_dataset(tmp_path, images=2)
    run = stub.make_run(tmp_path, raw, folds=(0.5,))
    timings = measure_images(run.parent, raw, repetitions=2, device="cpu")
    assert timings == Timings.load(run.parent)
    assert timings.unit == "image" and [len(taken) for taken in timings.seconds.values()] == [2]
    assert str(tmp_path) not in (run.parent / TIMINGS_FILE).read_text()
    assert "pixels a side" in timings.settings
