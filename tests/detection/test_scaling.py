"""Images of more than 8 bits are shown to a detector as those were that it was trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.detection.loaded import load
from medkd.detection.models import DetectorRun
from medkd.detection.predict import predict_detections
from medkd.detection.prepare import plan_and_preprocess_detection
from medkd.detection.store import DetectionStore
from medkd.evaluation.detection.predictions import DetectionPredictions
from medkd.exporting import detectors
from medkd.io.dicom_radiographs import read_eight_bit
from medkd.io.radiographs import to_eight_bit
from medkd.models.base import open_model
from medkd.runtime.detection import write_detector
from tests.dataset_conversion.own_trees import convert, make
from tests.detection import stub
from tests.detection.builders import make_dataset
from tests.detection.test_predict import picture, write_dicom


def wide() -> np.ndarray:
    """12 bits with a few burnt-in pixels of 16: by range the bright box is dark, by percentiles it is bright."""
    pixels = picture(4095)
    pixels[:2, :2] = 65535
    return pixels


def state_scaling(folder: Path, scaling: str) -> None:
    description = DatasetDescription.load(folder / "dataset.json")
    replace(description, extra={**description.extra, "medkd": {"scaling": scaling}}).save(folder / "dataset.json")


@pytest.mark.parametrize(("scaling", "boxes"), [("range", 0), ("percentile", 1)])
def test_files_are_scaled_for_prediction_as_for_training(tmp_path: Path, scaling: str, boxes: int) -> None:
    run = stub.make_run(tmp_path, make_dataset(tmp_path, images=3))
    state_scaling(run, scaling)
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(wide()).save(folder / "a.png")
    write_dicom(folder / "b.dcm", wide())  # without a window
    write_dicom(folder / "c.dcm", wide(), WindowCenter=2048, WindowWidth=4096)  # says itself how it is shown
    predict_detections(folder, tmp_path / "out", run, folds=[0], device="cpu", score=0.6)
    found = DetectionPredictions.load(tmp_path / "out").images
    assert {case: len(image.found) for case, image in found.items()} == {"a": boxes, "b": boxes, "c": 1}
    ready = load(run, [0], device="cpu")
    assert len(ready.predict(folder / "a.png").scores) == len(ready.predict(folder / "b.dcm").scores) == boxes
    settings = json.loads((tmp_path / "out" / "predict_settings.json").read_text())
    assert settings["scaling"] == scaling
    state_scaling(run, "logarithm")
    with pytest.raises(DataError, match=r"dataset\.json: 'scaling' must be percentile or range, found 'logarithm'"):
        predict_detections(folder, tmp_path / "other", run, folds=[0], device="cpu")


def test_conversion_preparation_and_export_say_how_images_were_scaled(tmp_path: Path) -> None:
    converted = convert("coco", make("coco", tmp_path / "own"), tmp_path / "root", scaling="range")
    assert DatasetDescription.load(converted.folder / "dataset.json").extra["medkd"]["scaling"] == "range"
    run = stub.make_run(tmp_path, make_dataset(tmp_path, images=3))
    state_scaling(run, "range")
    loaded = DetectorRun(run).load([0])
    described = detectors._described({}, loaded, "00", False)
    write_detector(tmp_path / "exported", described)
    assert open_model(tmp_path / "exported", "detection").describe().scaling == "range"


def test_a_store_of_raw_images_follows_the_data_set(tmp_path: Path) -> None:
    """Images that were never converted have more than 8 bits here."""
    raw = make_dataset(tmp_path, images=8, size=96)
    path = raw / "imagesTr" / "image_00_0000.png"
    shown = np.asarray(Image.open(path)).astype(np.uint16) * 16
    shown[:2, :2] = 65535
    Image.fromarray(shown).save(path)
    folder = tmp_path / "preprocessed" / raw.name / "detection"
    for scaling in ("percentile", "range"):  # the second one must make the image anew
        state_scaling(raw, scaling)
        plan_and_preprocess_detection(502, root=tmp_path, workers=1, verify=False)
        expected = to_eight_bit(shown, scaling)[0]  # type: ignore[arg-type]
        np.testing.assert_array_equal(DetectionStore(folder).image("image_00")[..., 0], expected)
        assert DatasetDescription.load(folder.parent / "dataset.json").extra["medkd"]["scaling"] == scaling
    np.testing.assert_array_equal(read_eight_bit(path, scaling="range"), expected)
