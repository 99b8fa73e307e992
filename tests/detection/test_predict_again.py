"""Prediction of radiographs into a folder that holds results, and of files that do not look like radiographs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medkd.core.errors import DataError
from medkd.detection.detecting import DetectReport
from medkd.detection.predict import find_radiographs, predict_detections
from medkd.evaluation.detection.predictions import DetectionPredictions
from tests.detection import stub
from tests.detection.builders import make_dataset, radiograph
from tests.detection.test_predict import picture, write_dicom


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return stub.make_run(tmp_path, make_dataset(tmp_path, images=3))


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        Image.fromarray(radiograph(seed, 120, 90)[0]).save(folder / f"{name}.png")
    return folder


def predict(inputs: Path, outputs: Path, run: Path, *, resume: bool = True, **more: object) -> DetectReport:
    return predict_detections(inputs, outputs, run, folds=[0], device="cpu", resume=resume, **more)  # type: ignore[arg-type]


def test_going_on_with_other_images_keeps_the_boxes_of_the_earlier_ones(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, out = write(tmp_path / "A", "a", "b", "c"), write(tmp_path / "B", "d"), tmp_path / "out"
    predict(first, out, run, resume=False)
    before = DetectionPredictions.load(out).to_json()["images"]
    report = predict(second, out, run)
    assert report.predicted == ["d"] and report.skipped == ["a", "b", "c"]
    assert "boxes of 3 images of earlier calls" in caplog.text
    after = DetectionPredictions.load(out).to_json()["images"]
    assert sorted(after) == ["a", "b", "c", "d"] and {case: after[case] for case in before} == before
    predict(second, out, run, resume=False)
    assert list(DetectionPredictions.load(out).images) == ["d"], "without --continue all is made anew"


def test_an_image_that_is_damaged_now_keeps_its_boxes_and_is_named(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs, out = write(tmp_path / "A", "a", "b"), tmp_path / "out"
    predict(inputs, out, run, resume=False)
    before = DetectionPredictions.load(out).to_json()
    (inputs / "a.png").write_bytes(b"nothing")
    report = predict(inputs, out, run)
    assert list(report.failed) == ["a"] and report.skipped == ["b"]
    assert DetectionPredictions.load(out).to_json() == before and "failed now keep the boxes" in caplog.text
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.png").write_bytes(b"nothing")  # another image of the name of one that was predicted
    assert list(predict(other, out, run).failed) == ["b"]
    assert list(DetectionPredictions.load(out).images) == ["a"]


def test_an_image_that_was_replaced_is_predicted_anew(run: Path, tmp_path: Path) -> None:
    inputs, out = write(tmp_path / "A", "a", "b"), tmp_path / "out"
    predict(inputs, out, run, resume=False)
    shutil.copyfile(inputs / "b.png", inputs / "a.png")  # another patient's
    report = predict(inputs, out, run)
    assert report.predicted == ["a"] and report.skipped == ["b"]
    found = DetectionPredictions.load(out).images
    np.testing.assert_array_equal(found["a"].found.boxes, found["b"].found.boxes)


def test_files_called_by_their_uid_are_found_and_the_rest_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "pacs"
    uid = "1.2.392.200036.9125.4.0.1234"
    for name in (uid, "IM0001", "scan.dcm"):
        write_dicom(folder / name, picture(4095), WindowCenter=2048, WindowWidth=4096)
    Image.fromarray(picture()).save(folder / "x.png")
    Image.fromarray(picture()).save(folder / "y.gif")
    (folder / "notes.txt").write_text("of the patient")
    sources = find_radiographs(folder, folder)
    assert [source.case for source in sources] == sorted([uid, "IM0001", "scan", "x"])
    assert {source.read().shape for source in sources} == {picture().shape}
    (said,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "notes.txt, y.gif" in said
    (folder / "predictions.json").write_text("{}")  # where results go among the images
    caplog.clear()
    find_radiographs(folder, folder)
    assert "predictions.json" not in caplog.text
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copyfile(folder / uid, alone / uid)
    assert [source.case for source in find_radiographs(alone)] == [uid]
    (alone / uid).rename(folder / "gone")
    (alone / "a.txt").write_text("")
    with pytest.raises(DataError, match="DICOM files of any name"):
        find_radiographs(alone)
