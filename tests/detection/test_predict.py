"""Prediction of radiographs of every kind, with a detector that finds bright spots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medkd.cli.predict import main
from medkd.core.errors import DataError, RunError
from medkd.core.files import write_json
from medkd.detection.base import DETECTORS, DetectorSpec
from medkd.detection.loaded import load
from medkd.detection.models import DetectorRun
from medkd.detection.predict import case_id, find_radiographs, predict_detections
from medkd.evaluation.detection.matching import overlaps
from medkd.evaluation.detection.predictions import DetectionPredictions
from tests.detection import stub
from tests.detection.builders import make_dataset

BOX = (60.0, 40.0, 140.0, 100.0)
WIDTH, HEIGHT = 240, 180


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return stub.make_run(tmp_path, make_dataset(tmp_path, images=3), folds=(0.5, 0.6))


def picture(highest: int = 255) -> np.ndarray:
    """A bright box on a dark, slightly noisy image that uses all of its range."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 0.2, (HEIGHT, WIDTH))
    left, top, right, bottom = (int(v) for v in BOX)
    values[top:bottom, left:right] = rng.uniform(0.8, 1, (bottom - top, right - left))
    return (values * highest).round().astype(np.uint8 if highest <= 255 else np.uint16)


def write_dicom(path: Path, stored: np.ndarray, **tags: object) -> None:
    """A digital radiograph."""
    pytest.importorskip("pydicom")
    from tests.io.dicom_series import plane_dataset

    dataset = plane_dataset(stored)
    dataset.Modality, dataset.SeriesInstanceUID = "DX", "1.2.4"
    for name, value in tags.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_all(folder: Path) -> None:
    """One image in every format; they all show the same."""
    folder.mkdir()
    Image.fromarray(picture()).save(folder / "a_png_0000.png")
    Image.fromarray(picture(4095)).save(folder / "b_sixteen.png")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(picture()).copy()).save(folder / "c_turned.jpg", quality=95, exif=exif)
    Image.fromarray(picture()).save(folder / "d_cut.jpg", quality=95)
    (folder / "d_cut.jpg").write_bytes((folder / "d_cut.jpg").read_bytes()[:-20])
    Image.fromarray(np.repeat(picture()[..., None], 3, 2)).save(folder / "e_colour.png")
    write_dicom(folder / "sub" / "f_window.dcm", picture(4095), WindowCenter=2048, WindowWidth=4096)
    write_dicom(folder / "sub" / "g_inverse", 4095 - picture(4095), PhotometricInterpretation="MONOCHROME1")


def box_of(predictions: DetectionPredictions, case: str) -> np.ndarray:
    image = predictions.images[case]
    assert (image.width, image.height) == (WIDTH, HEIGHT)
    return image.found.boxes[:1]


def test_every_format_gives_the_same_box_in_its_own_pixels(run: Path, tmp_path: Path) -> None:
    write_all(tmp_path / "in")
    out = tmp_path / "out"
    report = predict_detections(tmp_path / "in", out, run, folds=[0], device="cpu", pictures=True)
    names = ["a_png", "b_sixteen", "c_turned", "d_cut", "e_colour", "sub_f_window", "sub_g_inverse"]
    assert sorted(report.predicted) == names and not report.failed
    found = DetectionPredictions.load(out / "predictions.json")
    for case in names:
        assert overlaps(box_of(found, case), np.array([BOX]))[0, 0] > 0.9, case
    assert sorted(p.stem for p in (out / "pictures").iterdir()) == names
    with Image.open(out / "pictures" / "a_png.jpg") as drawn:
        assert max(drawn.size) >= 640  # small images are enlarged, so that the tags can be read
        colours = np.asarray(drawn.convert("RGB")).astype(int)
    assert (np.abs(colours - [255, 209, 102]).sum(-1) < 60).sum() > 500  # outline and tag
    assert not list(out.glob("*.jsonl"))


def test_cocos_own_tool_reads_the_results(run: Path, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    write_all(tmp_path / "in")
    predict_detections(tmp_path / "in", tmp_path / "out", run, folds=[0], device="cpu")
    head = json.loads((tmp_path / "out" / "coco_images.json").read_text())
    data = coco.COCO()
    data.dataset = {"info": {}, "annotations": [], **head}
    data.createIndex()
    loaded = data.loadRes(str(tmp_path / "out" / "coco_results.json"))
    image = next(i for i in head["images"] if i["case"] == "a_png")
    left, top, width, height = loaded.loadAnns(loaded.getAnnIds([image["id"]]))[0]["bbox"]
    assert overlaps(np.array([[left, top, left + width, top + height]]), np.array([BOX]))[0, 0] > 0.9
    assert image["file_name"] == "a_png_0000.png" and head["categories"] == [{"id": 1, "name": "fracture"}]


def test_a_bad_file_is_named_and_the_others_go_on(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(tmp_path / "in")
    (tmp_path / "in" / "a_png_0000.png").write_bytes(b"nothing")
    arguments = [
        "-i",
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
        "-m",
        f"502/{run.name}",
        "-f",
        "0",
        "--root",
        str(tmp_path),
    ]
    assert main([*arguments, "--device", "cpu", "--score", "0.05"]) == 1
    printed = capsys.readouterr()
    assert "6 radiographs predicted" in printed.out and "1 failed: a_png" in printed.out
    assert "a_png_0000.png" in printed.err and "Traceback" not in printed.err
    assert len(DetectionPredictions.load(tmp_path / "out").images) == 6
    Image.fromarray(picture()).save(tmp_path / "in" / "a_png_0000.png")
    assert main([*arguments, "--device", "cpu", "--score", "0.05", "--continue"]) == 0
    assert "1 radiographs predicted" in capsys.readouterr().out
    assert len(DetectionPredictions.load(tmp_path / "out").images) == 7
    assert main([*arguments, "--step-size", "0.5"]) == 1
    assert "--step-size is for segmentation" in capsys.readouterr().err


def test_a_truncated_jpeg_is_named_and_refused_if_told_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("cut.jpg", "whole.jpg"):
        Image.fromarray(picture()).save(tmp_path / "in" / name, quality=95)
    path = tmp_path / "in/cut.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    report = predict_detections(tmp_path / "in", tmp_path / "out", run, folds=[0], device="cpu")
    assert sorted(report.predicted) == ["cut", "whole"]
    (warning,) = [record.getMessage() for record in caplog.records if "whole JPEG" in record.getMessage()]
    assert "cut.jpg" in warning and "of the pixels, which are black" in warning
    strict = predict_detections(tmp_path / "in", tmp_path / "b", run, folds=[0], device="cpu", strict=True)
    assert strict.predicted == ["whole"] and "leave out --strict" in strict.failed["cut"]


def test_work_that_was_killed_is_continued_with_the_same_result(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path / "in")
    settings = {"folds": [0], "device": "cpu", "batch_size": 2}
    predict_detections(tmp_path / "in", tmp_path / "whole", run, **settings)  # type: ignore[arg-type]
    out = tmp_path / "out"
    original = stub.BrightSpots.detect

    def killed(self: stub.BrightSpots, images: object, **options: object) -> object:
        if len((out / "predictions.jsonl").read_text().splitlines()) > 4:
            raise KeyboardInterrupt
        return original(self, images, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(stub.BrightSpots, "detect", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_detections(tmp_path / "in", out, run, **settings)  # type: ignore[arg-type]
    assert not (out / "predictions.json").exists()
    monkeypatch.undo()
    with (out / "predictions.jsonl").open("a") as journal:
        journal.write('{"case": "e_colour", "boxes": [[1')  # the line that was being written
    with pytest.raises(RunError, match="other settings"):
        predict_detections(tmp_path / "in", out, run, score=0.5, resume=True, **settings)  # type: ignore[arg-type]
    report = predict_detections(tmp_path / "in", out, run, resume=True, **settings)  # type: ignore[arg-type]
    assert (len(report.skipped), len(report.predicted)) == (4, 3)
    assert (out / "predictions.json").read_bytes() == (tmp_path / "whole" / "predictions.json").read_bytes()
    again = predict_detections(tmp_path / "in", out, run, resume=True, **settings)  # type: ignore[arg-type]
    assert len(again.skipped) == 7 and not again.predicted
    assert (out / "predictions.json").read_bytes() == (tmp_path / "whole" / "predictions.json").read_bytes()


def test_what_other_settings_gave_is_not_continued(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier run's results lie there, a new one is killed at once, and that one is continued."""
    write_all(tmp_path / "in")
    out = tmp_path / "out"
    predict_detections(tmp_path / "in", out, run, folds=[0], device="cpu")
    monkeypatch.setattr(
        "medkd.detection.predict.detect_images", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        predict_detections(tmp_path / "in", out, run, folds=[1], device="cpu", score=0.3)
    monkeypatch.undo()
    report = predict_detections(tmp_path / "in", out, run, folds=[1], device="cpu", score=0.3, resume=True)
    assert len(report.predicted) == 7 and not report.skipped


@pytest.mark.parametrize("changed", [{"sides": [64, 48]}, {"anchor_scale": 2.0}, {"categories": ["b", "a"]}])
def test_a_description_that_changed_is_not_continued(tmp_path: Path, changed: dict[str, Any]) -> None:
    """All that a detector is built with decides over its boxes, and a user may edit it between two calls."""
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    teacher.mkdir()
    stub.register()
    described = {"network": stub.NAME, "categories": ["a", "b"], "train": [], "weights": "w.pt", "image_size": 64}
    torch.save(DETECTORS[stub.NAME].build(DetectorSpec(stub.NAME, ("a", "b"), 64)).state_dict(), teacher / "w.pt")
    write_json(teacher / "teacher.json", described)
    write_all(tmp_path / "in")
    predict_detections(tmp_path / "in", out, teacher / "w.pt", device="cpu")
    report = predict_detections(tmp_path / "in", out, teacher / "w.pt", device="cpu", resume=True)
    assert report.skipped and not report.predicted
    write_json(teacher / "teacher.json", {**described, **changed})
    with pytest.raises(RunError, match="other settings"):
        predict_detections(tmp_path / "in", out, teacher / "w.pt", device="cpu", resume=True)


def test_several_folds_are_fused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(picture()).save(tmp_path / "in" / "a.png")
    for name, folds in (("one", [0]), ("all", None)):
        predict_detections(tmp_path / "in", tmp_path / name, run, folds=folds, device="cpu")  # type: ignore[arg-type]
    one, both = (box_of(DetectionPredictions.load(tmp_path / name), "a") for name in ("one", "all"))
    assert overlaps(one, both)[0, 0] > 0.95
    assert json.loads((tmp_path / "all" / "predict_settings.json").read_text())["folds"] == ["0", "1"]


def test_boxes_are_suppressed_at_the_detectors_own_overlap_unless_another_is_given(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(picture()).save(tmp_path / "in" / "a.png")
    for given, used in ((None, 0.5), (0.3, 0.3)):
        stub.OVERLAPS.clear()
        predict_detections(tmp_path / "in", tmp_path / "out", run, device="cpu", overlap=given)
        assert list(stub.OVERLAPS) == [given, given]  # of both folds; None is a detector's own
        assert json.loads((tmp_path / "out" / "predict_settings.json").read_text())["overlap"] == used


def test_an_image_that_a_detector_cannot_take_does_not_cost_its_batch(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path / "in")
    monkeypatch.setattr(stub.BrightSpots, "_one", _fails_on_the_dark(stub.BrightSpots._one))
    Image.fromarray(np.zeros((50, 50), np.uint8)).save(tmp_path / "in" / "dark.png")
    report = predict_detections(tmp_path / "in", tmp_path / "out", run, folds=[0], device="cpu", batch_size=4)
    assert list(report.failed) == ["dark"] and "ValueError" in report.failed["dark"] and len(report.predicted) == 7


def test_inputs_are_named_clearly(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    with pytest.raises(DataError, match="found none"):
        find_radiographs(tmp_path / "in")
    with pytest.raises(DataError, match="does not exist"):
        find_radiographs(tmp_path / "nowhere")
    for name in ("a.png", "a_0000.jpg", "sub/b.png", ".hidden.png"):
        Image.fromarray(picture()).save(tmp_path / "in" / name)
    with pytest.raises(DataError, match="both be the case a"):
        find_radiographs(tmp_path / "in")
    (tmp_path / "in" / "a.png").unlink()
    assert [s.case for s in find_radiographs(tmp_path / "in")] == ["a", "sub_b"]
    assert case_id(Path("left/IMG.1_0000.PNG")) == "left_IMG.1"
    with pytest.raises(RunError, match="Expected a score"):
        predict_detections(tmp_path / "in", tmp_path / "out", run, score=2)


def test_a_checkpoint_of_another_detector_is_refused(run: Path) -> None:
    import torch

    from medkd.core.checkpoint import save_checkpoint

    assert float(DetectorRun(run).network("1").threshold.detach()) == pytest.approx(0.6)
    save_checkpoint(run / "fold_0" / "checkpoint_final.pt", {"schema": 1, "network": {"weight": torch.zeros(1)}})
    with pytest.raises(RunError, match="does not fit bright_spots"):
        DetectorRun(run).network("0")
    with pytest.raises(RunError, match="no checkpoint"):
        DetectorRun(run).network("3")


def _fails_on_the_dark(original: object) -> object:
    def one(self: stub.BrightSpots, image: np.ndarray, score: float, most: int) -> object:
        if image.max() < 0.45:
            raise ValueError("nothing to see")
        return original(self, image, score, most)  # type: ignore[operator]

    return one


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "sub"
    folder.mkdir(parents=True)
    (folder / "x.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"x\.png is a link to .*gone\.png, which is not there"):
        find_radiographs(tmp_path / "in")


def test_what_is_replaced_is_said(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_all(tmp_path / "in")
    first = predict_detections(tmp_path / "in", tmp_path / "out", run, folds=[0], device="cpu")
    assert first.replaced == []
    again = predict_detections(tmp_path / "in", tmp_path / "out", run, folds=[0], device="cpu")
    assert again.replaced == sorted(first.predicted)
    assert "predictions.json of 7 images is replaced" in caplog.text


def test_a_loaded_detector_finds_what_the_command_writes(run: Path, tmp_path: Path) -> None:
    write_all(tmp_path / "in")
    predict_detections(tmp_path / "in", tmp_path / "out", run, device="cpu")
    written = DetectionPredictions.load(tmp_path / "out" / "predictions.json").images["a_png"].found
    detector = load(run, device="cpu")
    assert detector.categories == ("fracture",)
    for image in (tmp_path / "in" / "a_png_0000.png", picture(), np.repeat(picture()[..., None], 3, 2)):
        found = detector.predict(image)
        np.testing.assert_allclose(found.boxes, written.boxes, atol=1e-3)
        np.testing.assert_allclose(found.scores, written.scores, atol=1e-6)
    for pixels in (picture(4095), picture()[None], picture() / 255):
        with pytest.raises(DataError, match="as uint8, found"):
            detector.predict(pixels)
