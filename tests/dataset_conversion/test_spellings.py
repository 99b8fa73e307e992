"""Names in other capitals or with a blank too many, counts and ids that contradict: found or refused, not guessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataset_conversion.read_coco import read_coco
from medkd.core.boxes import BoxAnnotation
from medkd.core.errors import DataError
from medkd.io.verify import verify_dataset
from tests.dataset_conversion.own_trees import box, boxes_of, convert, make
from tests.dataset_conversion.radiograph_trees import picture, save_jpeg, write_yolo


def test_label_files_of_yolo_in_other_capitals_or_with_a_blank_are_no_negatives(tmp_path: Path) -> None:
    source = make("yolo", tmp_path / "own")
    for old, new in (("x0.txt", "X0.txt"), ("x1.txt", "x1.TXT"), ("x3.txt", "x3 .txt")):
        (source / "labels" / old).rename(source / "labels" / new)
    result = convert("yolo", source, tmp_path / "root")
    assert result.ok and result.conversion.lists["negative"] == ("x2", "x5", "x8")
    for number in (0, 1, 3):
        found = BoxAnnotation.load(result.folder / f"labelsTr/x{number}.json")
        assert len(found.boxes) == len(boxes_of(number)) == 1


def test_a_label_file_of_yolo_that_is_an_images_own_is_no_other_images(tmp_path: Path) -> None:
    """a.txt is a.jpg's, whatever else is called A.jpg; of two label files that are spelt alike none is taken."""
    source = make("yolo", tmp_path / "own")
    save_jpeg(source / "images/X0.jpg", picture(70, box=box(7)))
    result = convert("yolo", source, tmp_path / "root")
    assert "X0" in result.conversion.lists["negative"] and "x0" not in result.conversion.lists["negative"]
    (source / "labels/x0.txt").rename(source / "labels/x0 .txt")
    write_yolo(source / "labels/X0 .txt", boxes_of(1))
    (source / "images/X0.jpg").unlink()
    report = convert("yolo", source, tmp_path / "again").conversion
    assert sum("an image of the same name" in finding.text() for finding in report.problems) == 2


@pytest.mark.parametrize("count", [3, 1, "2"])
def test_a_number_of_classes_that_is_another_than_their_names_is_refused(tmp_path: Path, count: object) -> None:
    source = make("yolo", tmp_path / "own")
    file = source / "data.yaml"
    file.write_text(file.read_text() + f"nc: {json.dumps(count)}\n")
    with pytest.raises(
        DataError, match=r"data.yaml: expected as many class 'names' as 'nc' says, .*, found 2"
    ) as caught:
        convert("yolo", source, tmp_path / "root")
    assert "\n" not in str(caught.value)
    file.write_text(file.read_text().partition("nc:")[0] + "nc: 2\n")
    assert convert("yolo", source, tmp_path / "root").ok


def test_a_truth_value_is_no_id_of_coco(tmp_path: Path) -> None:
    source = make("coco", tmp_path / "own")
    file = source / "annotations/instances_all.json"
    data = json.loads(file.read_text())
    data["annotations"][0]["image_id"] = True
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match="the id True, which is neither a number nor a text"):
        read_coco(file)


def test_radiographs_whose_names_differ_by_capitals_are_named(tmp_path: Path) -> None:
    source = make("yolo", tmp_path / "own")
    save_jpeg(source / "images/X0.jpg", picture(70, box=box(7)))
    folder = convert("yolo", source, tmp_path / "root").folder
    (finding,) = [one for one in verify_dataset(folder).warnings if "capitals" in one.expected]
    assert finding.found in ("X0, x0", "x0, X0") and not finding.error
