"""Detection annotations and data set descriptions: round trips, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medkd.core.boxes import BoxAnnotation, box_faults
from medkd.core.dataset import DatasetDescription, detection_cases, image_cases, training_cases
from medkd.core.errors import DataError


def test_an_annotation_survives_the_round_trip(tmp_path: Path) -> None:
    annotation = BoxAnnotation(
        width=640,
        height=480,
        boxes=((1.5, 2, 30.25, 40), (0, 0, 640, 480)),
        names=("fracture", "text"),
        window=(12.0, 3071.0),
    )
    annotation.save(tmp_path / "a.json")
    assert BoxAnnotation.load(tmp_path / "a.json") == annotation
    np.testing.assert_array_equal(annotation.array(), np.array([[1.5, 2, 30.25, 40], [0, 0, 640, 480]], np.float32))
    assert annotation.indices(("text", "fracture")).tolist() == [1, 0]


def test_a_negative_has_an_empty_array_of_four_columns(tmp_path: Path) -> None:
    BoxAnnotation(width=10, height=20).save(tmp_path / "n.json")
    negative = BoxAnnotation.load(tmp_path / "n.json")
    assert negative.array().shape == (0, 4) and negative.indices(("a",)).shape == (0,)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"boxes": [[1, 2, 3]]}, "x_min"),
        ({"names": []}, "one name per box"),
        ({"width": "wide"}, "width"),
        ({"boxez": []}, "Did you mean 'boxes'"),
    ],
)
def test_a_malformed_annotation_is_refused_with_its_file(tmp_path: Path, change: dict[str, object], text: str) -> None:
    data = {"width": 9, "height": 9, "boxes": [[1, 2, 3, 4]], "names": ["a"], **change}
    (tmp_path / "bad.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=text) as error:
        BoxAnnotation.load(tmp_path / "bad.json")
    assert "bad.json" in str(error.value)


def test_an_unknown_class_is_named() -> None:
    with pytest.raises(DataError, match="'wrist'"):
        BoxAnnotation(width=9, height=9, boxes=((0, 0, 1, 1),), names=("wrist",)).indices(("fracture",))


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ((0, 0, 10, 20), None),
        ((2, 2, 2, 8), "no area"),
        ((5, 5, 3, 8), "no area"),
        ((-1, 0, 5, 5), "outside"),
        ((0, 0, 5, 21), "outside"),
        ((float("nan"), 0, 5, 5), "no number"),
    ],
)
def test_box_faults_are_found(box: tuple[float, ...], fault: str | None) -> None:
    found = box_faults(box, 10, 20)
    assert found is None if fault is None else found is not None and fault in found


def test_a_detection_description_can_be_read_by_nnunet_and_by_medkd(tmp_path: Path) -> None:
    made = DatasetDescription.detection(
        ("X-ray",), ("fracture", "text"), num_training=3, file_ending=".png", patients={"a": "1"}
    )
    made.save(tmp_path / "dataset.json")
    data = json.loads((tmp_path / "dataset.json").read_text())
    assert data["task"] == "detection" and data["categories"] == ["fracture", "text"]
    assert data["labels"] == {"background": 0, "fracture": 1, "text": 2}
    assert data["medkd"] == {"patients": {"a": "1"}}
    assert DatasetDescription.load(tmp_path / "dataset.json") == made


def test_categories_alone_are_enough_and_segmentation_is_the_default() -> None:
    data = {"channel_names": {"0": "X-ray"}, "task": "detection", "categories": ["a"], "file_ending": ".png"}
    found = DatasetDescription.from_json(data, "x")
    assert found.categories == ("a",) and found.labels.values == (0, 1)
    plain = DatasetDescription.from_json(
        {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}, "x"
    )
    assert plain.task == "segmentation" and plain.categories == () and "task" not in plain.to_json()


@pytest.mark.parametrize("categories", [None, [], "a", ["a", "a"], ["background"], [1]])
def test_unusable_categories_are_refused(categories: object) -> None:
    data = {"channel_names": {"0": "X-ray"}, "task": "detection", "categories": categories, "file_ending": ".png"}
    with pytest.raises(DataError, match="categories"):
        DatasetDescription.from_json(data, "x")


def test_images_of_several_endings_lie_beside_each_other(tmp_path: Path) -> None:
    for name in ("imagesTr/a_0000.png", "imagesTr/b_0000.jpg", "imagesTr/._b_0000.jpg", "imagesTs/t_0000.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("labelsTr/a.json", "labelsTr/b.json", "labelsTr/c.json", "labelsTs/t.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    description = DatasetDescription.detection(("X-ray",), ("a",), file_ending=".jpg")
    found = {c.case: c.images[0].name for c in training_cases(tmp_path, description)}
    assert found == {"a": "a_0000.png", "b": "b_0000.jpg", "c": "c_0000.jpg"}
    assert [c.case for c in detection_cases(tmp_path, description, "Ts")] == ["t"]
    assert [c.case for c in image_cases(tmp_path / "imagesTr", description)] == ["a", "b"]


def test_a_detection_data_set_without_annotations_is_an_error(tmp_path: Path) -> None:
    description = DatasetDescription.detection(("X-ray",), ("a",))
    assert detection_cases(tmp_path, description, "Ts") == []
    with pytest.raises(DataError, match="labelsTr"):
        training_cases(tmp_path, description)
