"""The end of a fold: boxes in original pixels, scores, and what a kill leaves."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from medkd.core.boxes import BoxAnnotation
from medkd.core.errors import DataError
from medkd.detection.job import DetectionJob
from medkd.detection.store import DetectionStore
from medkd.detection.validation import finish_fold
from medkd.evaluation.detection.predictions import DetectionPredictions
from medkd.evaluation.detection.results import DetectionSummary
from tests.detection import stub
from tests.detection.builders import make_dataset, make_store

VAL = ("image_00", "image_01", "image_02", "image_07")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_dataset(tmp_path, size=192)


def judge(job: DetectionJob, raw: Path) -> DetectionSummary | None:
    return finish_fold(job.folder, DetectionStore(job.store), raw, job.val, job.device)


def test_a_detector_that_finds_everything_scores_full_marks_in_original_pixels(tmp_path: Path, raw: Path) -> None:
    """The store holds the images at half their size."""
    store = make_store(raw, tmp_path / "store", 96)
    run = stub.make_run(tmp_path, raw)
    summary = judge(stub.make_job(run, store.folder, VAL), raw)
    assert summary is not None and summary.value("AP50").mean == 1.0 and summary.value("AP").mean > 0.8
    assert summary.value("S@0.125").mean == 1.0 and summary.value("AUC").mean == 1.0
    folder = run / "fold_0" / "validation"
    found = DetectionPredictions.load(folder)
    assert sorted(found.images) == sorted(VAL) and (
        found.images["image_00"].width,
        found.images["image_00"].height,
    ) == (192, 144)
    truth = BoxAnnotation.load(raw / "labelsTr" / "image_00.json").array()
    assert np.abs(found.images["image_00"].found.boxes - truth).max() <= 2.5
    assert len(found.images["image_07"].found) == 0
    assert DetectionSummary.load(folder / "summary.json").to_json() == summary.to_json()
    assert sorted(p.name for p in folder.iterdir()) == [
        "coco_images.json",
        "coco_results.json",
        "made_with.jsonl",
        "predictions.json",
        "summary.json",
    ]
    limits = json.loads((folder / "summary.json").read_text())["limits"]
    assert limits == {"score": 0.001, "overlap": 0.5, "most": 300}  # the detector's own overlap
    model = json.loads((run / "fold_0" / "model.json").read_text())
    assert model["parameters"] == 1 and model["latency_ms"] > 0 and model["patch_size"] == [96, 96]


def test_what_was_looked_at_before_a_kill_is_kept_unless_it_was_made_otherwise(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(raw, tmp_path / "store", 96)
    run = stub.make_run(tmp_path, raw)
    job = stub.make_job(run, store.folder, VAL)
    original = type(store).image
    monkeypatch.setattr(
        type(store), "image", lambda self, case: original(self, case) if case != "image_07" else _killed()
    )
    with pytest.raises(KeyboardInterrupt):
        judge(job, raw)
    journal = run / "fold_0" / "validation" / "predictions.jsonl"
    assert len(journal.read_text().splitlines()) == 1 + 2  # the batch before the kill
    with journal.open("a") as file:
        file.write('{"case": "image_02", "fi')
    monkeypatch.undo()

    def looked_at() -> int:
        stub.CALLS.clear()
        summary = judge(job, raw)
        assert summary is not None and summary.value("AP50").mean == 1.0
        return sum(stub.CALLS)

    describing = 13  # model.json: counted once, timed twelve times
    assert looked_at() == describing + 2
    assert looked_at() == describing
    os.utime(run / "fold_0" / "checkpoint_final.pt", (2e9, 2e9))
    assert looked_at() == describing  # times of files say nothing
    found = run / "fold_0" / "validation" / "predictions.json"
    found.write_text(found.read_text() + "\n")
    os.utime(found, (2e9, 2e9))
    assert looked_at() == describing + 4
    made = run / "fold_0" / "validation" / "made_with.jsonl"
    made.write_text(made.read_text().replace('\\"overlap\\": 0.5', '\\"overlap\\": 0.7'))  # an earlier version's
    assert looked_at() == describing + 4
    made.write_text(re.sub(r'"weights": \[\s*"', '"weights": ["0', made.read_text()))
    assert looked_at() == describing + 4
    index = store.folder / "cases.json"
    index.write_text(re.sub(r'"pixels": "', '"pixels": "0', index.read_text()))  # other images under the same names
    store = DetectionStore(store.folder)
    assert looked_at() == describing + 4


def test_without_validation_cases_there_is_nothing_to_score(tmp_path: Path, raw: Path) -> None:
    store = make_store(raw, tmp_path / "store", 96)
    run = stub.make_run(tmp_path, raw)
    assert judge(stub.make_job(run, store.folder, ()), raw) is None
    assert (run / "fold_0" / "model.json").exists() and not (run / "fold_0" / "validation").exists()


def test_missing_annotations_and_images_are_named(tmp_path: Path, raw: Path) -> None:
    store = make_store(raw, tmp_path / "store", 96)
    job = stub.make_job(stub.make_run(tmp_path, raw), store.folder, VAL)
    store.image_path("image_01").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"1 of 4 validation images failed.*image_01"):
        judge(job, raw)
    (raw / "labelsTr" / "image_02.json").unlink()
    with pytest.raises(DataError, match=r"image_02\.json.*restore the raw data set"):
        judge(job, raw)


def _killed() -> np.ndarray:
    raise KeyboardInterrupt
