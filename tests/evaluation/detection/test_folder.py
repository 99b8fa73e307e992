"""Detections in files: what is written and read, what is missing or does not fit, and the folds of a run put
together.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from medkd.cli.cross_validate import main as cross_validate_main
from medkd.cli.evaluate import main
from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError, RunError
from medkd.core.run import Budget, NetworkSpec, RunDescription
from medkd.core.serial import save
from medkd.evaluation.cross_validation import cross_validate
from medkd.evaluation.detection.coco import coco_scores
from medkd.evaluation.detection.folder import evaluate_detection_folder
from medkd.evaluation.detection.predictions import Boxes, DetectionPredictions, ImagePredictions
from medkd.evaluation.detection.results import DetectionSummary, Rules, rules_of, summary_text
from tests.evaluation.boxes import Pair, random_pair, write_pair

NAMES = ("fracture", "text")


@pytest.fixture
def pair() -> Pair:
    return random_pair(0, images=12)


@pytest.fixture
def folders(tmp_path: Path, pair: Pair) -> tuple[Path, Path]:
    return write_pair(tmp_path, pair, NAMES)


def test_predictions_survive_the_disk(folders: tuple[Path, Path], pair: Pair) -> None:
    loaded = DetectionPredictions.load(folders[0])
    assert loaded.categories == NAMES and len(loaded.images) == 12
    for image, found in zip(loaded.images.values(), pair[0], strict=True):
        np.testing.assert_allclose(image.found.boxes, found.boxes, atol=0.0051)
        np.testing.assert_array_equal(image.found.classes, found.classes)
    again = DetectionPredictions.load(loaded.save(folders[0].parent / "again"))
    assert again.to_json() == loaded.to_json()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"classes": ["bone"]}, "class 'bone' is not among"),
        ({"scores": [0.5, 0.5]}, "2 scores and 1 classes for 1 boxes"),
        ({"boxes": [[0, 0, float("inf"), 5]]}, "finite coordinates"),
        ({"boxes": [[0, 0, 5]]}, "predict again"),
        ({"width": None}, "predict again"),
    ],
)
def test_damaged_predictions_are_refused_with_the_image_named(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    image = {
        "file": "a.png",
        "width": 9,
        "height": 9,
        "boxes": [[0, 0, 5, 5]],
        "scores": [0.5],
        "classes": ["fracture"],
    }
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps({"schema": 1, "categories": ["fracture"], "images": {"a": {**image, **change}}}))
    with pytest.raises(DataError, match=sentence) as error:
        DetectionPredictions.load(path)
    assert "predictions.json: images: a" in str(error.value)
    path.write_text(json.dumps({"schema": 2, "categories": [], "images": {}}))
    with pytest.raises(DataError, match="schema 2"):
        DetectionPredictions.load(tmp_path)


def test_the_summary_holds_cocos_numbers_and_survives_the_disk(folders: tuple[Path, Path], tmp_path: Path) -> None:
    summary = evaluate_detection_folder(*folders)
    loaded = DetectionPredictions.load(folders[0])
    expected = coco_scores([i.found for i in loaded.images.values()], list(summary.truths.values()), NAMES)
    assert {key: summary.values[key].mean for key in expected} == pytest.approx(expected, nan_ok=True)
    assert summary.rules.excluded == ("text",) and summary.value("AP without text").mean == pytest.approx(
        summary.value("AP", "fracture").mean
    )
    assert summary.value("AP").low <= summary.value("AP").mean <= summary.value("AP").high
    curve = summary.curves[""]
    assert curve.sensitivity[curve.false_positives <= 1].max() == pytest.approx(summary.value("S@1").mean)
    summary.save(tmp_path / "s.json")
    again = DetectionSummary.load(tmp_path / "s.json")
    assert again.to_json() == summary.to_json() and again.boxes("fracture") == summary.boxes("fracture")
    data = json.loads((tmp_path / "s.json").read_text())
    assert (
        data["images"] == 12
        and data["classes"]["text"]["boxes"] == summary.boxes("text")
        and "pycocotools" in data["definitions"]["AP"]
    )
    text = summary_text(summary)
    assert f"{summary.value('AP50').mean:.3f}" in text and "AP without text" in text and "12 images" in text


def test_missing_and_surplus_cases_are_named(folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    predictions, references = folders
    (references / "image_03.json").unlink()
    with caplog.at_level(logging.WARNING):
        fewer = evaluate_detection_folder(predictions, references)
    assert len(fewer.truths) == 11 and "image_03" in caplog.text
    data = json.loads((predictions / "predictions.json").read_text())
    for case in ("image_05", "image_06"):
        del data["images"][case]
    (predictions / "predictions.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"2 of 11 cases: image_05, image_06\. Predict them"):
        evaluate_detection_folder(predictions, references)
    summary = evaluate_detection_folder(predictions, references, allow_missing=True)
    assert summary.missing == ("image_05", "image_06") and summary.boxes() == fewer.boxes()
    assert summary.value("AR@100").mean < fewer.value("AR@100").mean


def test_what_does_not_fit_is_refused(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    BoxAnnotation(width=99, height=300).save(references / "image_01.json")
    with pytest.raises(DataError, match=r"image_01 \(image_01: 300×300 and 99×300 px\)"):
        evaluate_detection_folder(predictions, references)
    BoxAnnotation(width=300, height=300, boxes=((1.0, 1.0, 9.0, 9.0),), names=("screw",)).save(
        references / "image_01.json"
    )
    with pytest.raises(DataError, match=r"image_01\.json.*'screw'.*dataset\.json"):
        evaluate_detection_folder(predictions, references)
    DatasetDescription.detection(("X-ray",), ("screw", *NAMES)).save(references.parent / "dataset.json")
    summary = evaluate_detection_folder(predictions, references)
    assert summary.value("AP", "screw").mean == 0.0  # a class that the model does not know is missed
    assert evaluate_detection_folder(predictions, references, classes=NAMES).categories == NAMES
    with pytest.raises(DataError, match="found 'bone'"):
        evaluate_detection_folder(predictions, references, classes=("bone",))
    with pytest.raises(DataError, match="expected annotations named CASE"):
        evaluate_detection_folder(predictions, references.parent)


def renamed(predictions: Path, *names: str) -> None:
    """Let the predictions call their classes otherwise."""
    path = predictions / "predictions.json"
    text = path.read_text()
    for old, new in zip(NAMES, names, strict=True):
        text = text.replace(f'"{old}"', f'"{new}"')
    path.write_text(text)


def test_classes_that_are_called_otherwise_are_refused_and_not_scored_as_missed(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, references = folders
    DatasetDescription.detection(("X-ray",), NAMES).save(references.parent / "dataset.json")
    renamed(predictions, "Fracture", "text")
    assert main([*map(str, folders)]) == 1
    assert "found 'fracture'" in (said := capsys.readouterr().err) and "Did you mean 'Fracture'?" in said
    assert main([*map(str, folders), "--labels", "fracture"]) == 1, "none of the chosen classes can be found"
    assert main([*map(str, folders), "--labels", "text"]) == 0


def test_a_model_of_fewer_classes_is_scored_with_a_warning(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    predictions, references = folders
    DatasetDescription.detection(("X-ray",), NAMES).save(references.parent / "dataset.json")
    data = json.loads((predictions / "predictions.json").read_text())
    for image in data["images"].values():
        kept = [place for place, name in enumerate(image["classes"]) if name == "fracture"]
        image |= {key: [image[key][place] for place in kept] for key in ("boxes", "scores", "classes")}
    (predictions / "predictions.json").write_text(json.dumps({**data, "categories": ["fracture"]}))
    summary = evaluate_detection_folder(predictions, references)
    assert summary.value("AP", "text").mean == 0.0 and "know no class text" in caplog.text


def test_patients_of_the_data_set_are_the_units_of_the_intervals(folders: tuple[Path, Path]) -> None:
    patients = {f"image_{i:02d}": f"p{i // 3}" for i in range(12)}
    DatasetDescription.detection(("X-ray",), NAMES, patients=patients).save(folders[1].parent / "dataset.json")
    folders[1].rename(folders[1].parent / "labelsTr")
    summary = evaluate_detection_folder(folders[0], folders[1].parent)  # a raw data set
    assert summary.value("AP").n == 4 and summary.to_json()["patients"] == 4
    assert "over patients" in summary_text(summary)


def test_a_hit_can_be_defined_otherwise(folders: tuple[Path, Path]) -> None:
    strict, loose, centre = (
        evaluate_detection_folder(*folders, rules=rules_of(hit)) for hit in ("0.9", "0.1", "centre")
    )
    assert strict.value("S@1").mean < loose.value("S@1").mean and strict.value("AP") == loose.value("AP")
    assert "centre lies in the box" in centre.to_json()["definitions"]["S@R"]
    for wrong in ("0", "2", "middle"):
        with pytest.raises(DataError, match="A hit is"):
            rules_of(wrong)
    assert Rules(()).resolved(NAMES).excluded == ()
    with pytest.raises(DataError, match="to exclude"):
        Rules(("bone",)).resolved(NAMES)


def test_the_command_prints_a_table_and_writes_the_summary(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*map(str, folders), "--exclude", "fracture", "--hit", "centre", "-o", str(tmp_path / "out.json")]) == 0
    summary = DetectionSummary.load(tmp_path / "out.json")
    out = capsys.readouterr().out
    assert f"{summary.value('AP', 'text').mean:.3f}" in out and "AP without fracture" in out and "written: " in out
    assert main([str(folders[0] / "predictions.json"), str(folders[1]), "--labels", "fracture"]) == 0
    assert DetectionSummary.load(folders[0] / "summary.json").categories == ("fracture",)
    (tmp_path / "empty").mkdir()
    assert main([str(folders[0]), str(tmp_path / "empty")]) == 1
    assert "expected annotations" in capsys.readouterr().err


def make_fold(run: Path, fold: int, pair: Pair, cases: range) -> None:
    """A validated fold of a run."""
    folder = run / f"fold_{fold}"
    predictions, references = write_pair(folder / "made", pair, NAMES)
    loaded = DetectionPredictions.load(predictions)
    wanted = [f"image_{i:02d}" for i in cases]
    loaded.restricted(wanted).save(folder / "validation")
    for path in references.iterdir():
        if path.stem not in wanted:
            path.unlink()
    evaluate_detection_folder(folder / "validation", references).save(folder / "validation" / "summary.json")
    (folder / "split.json").write_text(json.dumps({"train": [], "val": wanted}))


def test_folds_are_scored_together_as_if_one_detector_had_made_them(
    tmp_path: Path, folders: tuple[Path, Path], pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "results" / "Dataset502_Test" / "yolov8n__detection"
    run.mkdir(parents=True)
    with pytest.raises(RunError, match="not a medkd run folder"):
        cross_validate(run)
    network = NetworkSpec(name="yolov8n", in_channels=3, num_outputs=2, patch_size=(64, 64))
    budget = Budget(epochs=1, iterations_per_epoch=1, batch_size=1, learning_rate=0.1, seed=0)
    described = RunDescription(
        dataset=run.parent.name, configuration="detection", network=network, budget=budget, mirror_axes=()
    )
    save(run / "run.json", described)
    with pytest.raises(RunError, match="train at least one fold"):
        cross_validate(run)
    make_fold(run, 0, pair, range(0, 5))
    make_fold(run, 1, pair, range(5, 12))
    assert cross_validate_main(["502", run.name, "--root", str(tmp_path)]) == 0
    out = capsys.readouterr()
    assert cross_validate_main(["502", run.name, "--root", str(tmp_path), "--no-postprocessing"]) == 1
    assert "is a run for detection; leave out --no-postprocessing" in capsys.readouterr().err
    assert "fold 1: AP " in out.out and "over 7 images" in out.out and "folds 2, 3, 4 are not there" in out.err
    merged, whole = DetectionSummary.load(run / "crossval" / "summary.json"), evaluate_detection_folder(*folders)
    assert {k: v.mean for k, v in merged.values.items()} == pytest.approx(
        {k: v.mean for k, v in whole.values.items()}, nan_ok=True
    )
    assert merged.extra["folds"] == [0, 1] and merged.extra["missing_folds"] == [2, 3, 4]
    assert len(DetectionPredictions.load(run / "crossval").images) == 12
    make_fold(run, 2, pair, range(4, 6))
    with pytest.raises(DataError, match="image_04 is a validation case of fold 0 and of fold 2"):
        cross_validate(run)
    (run / "fold_2" / "split.json").write_text(json.dumps({"train": [], "val": ["image_04", "image_99"]}))
    with pytest.raises(DataError, match="image_99 have no score"):
        cross_validate(run)


def test_an_image_without_detections_and_one_without_boxes_are_images_like_others(tmp_path: Path) -> None:
    empty, box = Boxes.of([], [], []), Boxes.of([[10, 10, 50, 50]], [0], [0.9])
    images = {"both": box, "missed": empty, "invented": box, "none": empty}
    DetectionPredictions(("fracture",), {c: ImagePredictions(c, 100, 100, b) for c, b in images.items()}).save(tmp_path)
    for case in images:
        boxes = ((10.0, 10.0, 50.0, 50.0),) if case in ("both", "missed") else ()
        BoxAnnotation(width=100, height=100, boxes=boxes, names=("fracture",) * len(boxes)).save(
            tmp_path / "ref" / f"{case}.json"
        )
    summary = evaluate_detection_folder(tmp_path, tmp_path / "ref")
    assert (
        summary.value("AUC").mean == 0.5 and summary.value("S@0.25").mean == 0.5 and summary.value("AR@100").mean == 0.5
    )
    assert summary.boxes() == 2 and not summary.skipped
