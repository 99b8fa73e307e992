"""Reading COCO, YOLO and VOC by name, and what counts as a fault of a box."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dataset_conversion.boxes import Drawn, clean_boxes, disagreement
from dataset_conversion.read_coco import read_coco
from dataset_conversion.read_voc import read_voc
from dataset_conversion.read_yolo import read_yaml_names, read_yolo
from medkd.core.errors import DataError
from tests.dataset_conversion.radiograph_trees import coco, write_coco, write_voc, write_yolo

SIZE = (60, 40)
BOX = (10.0, 8.0, 24.0, 21.0)


def cleaned(
    *boxes: tuple[str, tuple[float, ...]], unknown: tuple[str, ...] = ()
) -> tuple[list, list[tuple[bool, str]]]:
    kept, findings = clean_boxes("c", Drawn(Path("f"), boxes, None, unknown), SIZE, ("a", "b"))
    return kept, [(f.error, f.text()) for f in findings]


def test_three_formats_say_the_same(tmp_path: Path) -> None:
    write_coco(tmp_path / "a.json", {"i.png": (*SIZE, [(7, BOX)])}, {3: "b", 7: "a"})
    write_yolo(tmp_path / "i.txt", [(1, BOX)])
    write_voc(tmp_path / "i.xml", "i.png", [("a", BOX)])
    stated = read_coco(tmp_path / "a.json")
    assert stated.categories == ("b", "a") and stated.images["i.png"].size == SIZE
    drawn, name = read_voc(tmp_path / "i.xml")
    assert name == "i.png" and drawn.size == SIZE
    for found in (stated.images["i.png"], read_yolo(tmp_path / "i.txt", ("b", "a"), SIZE), drawn):
        assert found.boxes[0][0] == "a"
        np.testing.assert_allclose(found.boxes[0][1], BOX, atol=0.01)


def test_original_voc_counts_pixels_from_one(tmp_path: Path) -> None:
    write_voc(tmp_path / "i.xml", "i.png", [("a", (1, 1, 60, 40))])
    drawn, _ = read_voc(tmp_path / "i.xml", one_based=True)
    assert drawn.boxes == (("a", (0, 0, 60, 40)),)


def test_yolo_polygons_become_boxes_and_high_numbers_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "i.txt").write_text("0 0.1 0.2 0.5 0.25 0.3 0.75\n\n5 0.5 0.5 0.1 0.1\n")
    drawn = read_yolo(tmp_path / "i.txt", ("a",), SIZE)
    np.testing.assert_allclose(drawn.boxes[0][1], (6, 8, 30, 30))
    assert drawn.unknown == ("class 5",)


@pytest.mark.parametrize(
    "line", ["0 0.5 0.5 0.1", "x 0.5 0.5 0.1 0.1", "-1 .5 .5 .1 .1", "0 .5 .5 .1 .1 .9", "0 a b c d"]
)
def test_other_yolo_lines_are_refused_with_their_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "i.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(DataError, match="line 2"):
        read_yolo(tmp_path / "i.txt", ("a",), SIZE)


def test_coco_without_bbox_uses_the_polygons_and_strays_are_named(tmp_path: Path) -> None:
    data = coco({"i.png": (*SIZE, [(0, BOX)]), "j.png": (*SIZE, [(9, BOX)])}, {0: "a"})
    data["annotations"][0] |= {"bbox": [], "segmentation": [[10, 8, 24, 9], [12, 21, 20, 18]]}
    data["annotations"].append({"image_id": 77, "category_id": 0, "bbox": [1, 1, 2, 2]})
    (tmp_path / "a.json").write_text(json.dumps(data))
    found = read_coco(tmp_path / "a.json")
    assert found.images["i.png"].boxes == (("a", BOX),)
    assert found.images["j.png"].unknown == ("category_id 9",)
    assert [f.error for f in found.findings] == [True] and "1 of no image" in found.findings[0].text()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"iscrowd": 1, "bbox": []}, "annotation 17 with neither"),
        ({"bbox": None, "segmentation": {"size": [40, 60], "counts": "abc"}}, "annotation 17 with {'size'"),
        ({"bbox": [1, 2, 3]}, "annotation 17 with [1, 2, 3]"),
        ({"bbox": [1, 2, 3, None]}, "annotation 17 with [1, 2, 3, None]"),
        ({"bbox": []}, "annotation 17 with neither"),
        ({"iscrowd": "maybe"}, "annotation 17 with iscrowd 'maybe'"),
        ({"iscrowd": 2}, "annotation 17 with iscrowd 2"),
    ],
)
def test_an_unusable_coco_annotation_is_a_fault_of_its_image_alone(tmp_path: Path, change: dict, text: str) -> None:
    data = coco({"i.png": (*SIZE, [(0, BOX), (0, (1.0, 1.0, 5.0, 5.0))]), "j.png": (*SIZE, [(0, BOX)])}, {0: "a"})
    data["annotations"][0] |= {"id": 17} | change
    (tmp_path / "a.json").write_text(json.dumps(data))
    found = read_coco(tmp_path / "a.json").images
    assert found["j.png"].boxes == (("a", BOX),) and not found["j.png"].unusable
    kept, findings = clean_boxes("i", found["i.png"], SIZE, ("a",))
    assert len(kept) == 1
    (finding,) = findings
    assert finding.error and finding.case == "i" and text in finding.text() and "a.json" in finding.text()


@pytest.mark.parametrize("flag", [0, 0.0, False, None, "0", "false", "False", 1, 1.0, True, "1", " true", "True"])
def test_a_crowd_is_one_however_it_is_written(tmp_path: Path, flag: object) -> None:
    data = coco({"i.png": (*SIZE, [(0, BOX)])}, {0: "a"})
    data["annotations"][0]["iscrowd"] = flag
    (tmp_path / "a.json").write_text(json.dumps(data))
    found, crowd = read_coco(tmp_path / "a.json").images["i.png"], str(flag).strip().lower() in ("1", "1.0", "true")
    assert (found.ignored if crowd else found.boxes) == (("a", BOX),) and not (found.boxes if crowd else found.ignored)


@pytest.mark.parametrize("change", [{"width": None}, {"height": None}, {"width": 0, "height": 0}])
def test_a_coco_size_that_is_null_or_zero_is_unknown(tmp_path: Path, change: dict) -> None:
    data = coco({"i.png": (*SIZE, [(0, BOX)])}, {0: "a"})
    data["images"][0] |= change
    (tmp_path / "a.json").write_text(json.dumps(data))
    assert read_coco(tmp_path / "a.json").images["i.png"] == Drawn(tmp_path / "a.json", (("a", BOX),))


def test_an_image_listed_twice_keeps_the_faults_of_both(tmp_path: Path) -> None:
    data = coco({"i.png": (*SIZE, [(9, BOX)]), "j.png": (*SIZE, [(0, BOX)])}, {0: "a"})
    data["images"][1]["file_name"] = "i.png"
    (tmp_path / "a.json").write_text(json.dumps(data))
    found = read_coco(tmp_path / "a.json")
    assert found.images["i.png"].unknown == ("category_id 9",) and found.images["i.png"].boxes == (("a", BOX),)


def test_a_byte_order_mark_before_a_yolo_file_is_ignored(tmp_path: Path) -> None:
    write_yolo(tmp_path / "i.txt", [(0, BOX)])
    plain = read_yolo(tmp_path / "i.txt", ("a",), SIZE)
    (tmp_path / "i.txt").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "i.txt").read_bytes())
    assert read_yolo(tmp_path / "i.txt", ("a",), SIZE) == plain


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", "{}"), ("a.json", '{"images": [{}], "categories": []}'), ("a.json", "[1]")]
)
def test_other_json_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="COCO"):
        read_coco(tmp_path / name)


@pytest.mark.parametrize(
    "content", ["<annotation><object><name>a</name></object></annotation>", "<a", "<other></other>", ""]
)
def test_other_xml_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "i.xml").write_text(content)
    with pytest.raises(DataError, match="Pascal VOC"):
        read_voc(tmp_path / "i.xml")


def test_yaml_names_may_be_a_list_or_numbered(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("names: [a, b]")
    assert read_yaml_names(path)[1] == ("a", "b")
    path.write_text("names:\n  1: b\n  0: a\n")
    assert read_yaml_names(path)[1] == ("a", "b")
    for text in ("names:\n  1: b\n  2: a\n", "nc: 3", "names: [a"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"data\.yaml"):
            read_yaml_names(path)


def test_sound_boxes_pass_and_rounding_errors_are_cut_silently() -> None:
    kept, findings = cleaned(("a", BOX), ("b", (-0.4, 0, 60.9, 40)))
    assert kept == [("a", BOX), ("b", (0.0, 0.0, 60.0, 40.0))] and not findings


def test_a_box_that_sticks_out_is_cut_with_a_warning() -> None:
    kept, findings = cleaned(("a", (50, 30, 75, 45)))
    assert kept == [("a", (50, 30, 60, 40))]
    assert [error for error, _ in findings] == [False] and "15 px outside" in findings[0][1]


@pytest.mark.parametrize(
    "box",
    [(5, 5, 5, 9), (9, 5, 5, 9), (70, 5, 80, 9), (5, -9, 8, -2), (float("nan"), 1, 2, 3), (1, 1, float("inf"), 3)],
)
def test_no_area_nothing_inside_and_no_number_are_errors(box: tuple[float, ...]) -> None:
    kept, findings = cleaned(("a", box))
    assert kept == [] and [error for error, _ in findings] == [True]


def test_unknown_classes_are_errors_and_doubles_are_kept_once() -> None:
    kept, findings = cleaned(("a", BOX), ("a", (10.2, 8, 24, 21.3)), ("b", BOX), ("z", BOX), unknown=("class 5",))
    assert [name for name, _ in kept if name in "ab"] == ["a", "b"]
    assert [error for error, _ in findings] == [True, True, False]
    assert "'class 5'" in findings[0][1] and "'z'" in findings[1][1] and "twice" in findings[2][1]


def test_disagreement_is_symmetric_in_order_and_says_what_differs() -> None:
    one, two = ("a", BOX), ("b", (30.0, 2.0, 50.0, 9.0))
    near = ("a", tuple(v + 0.9 for v in BOX))
    assert disagreement([one, two], [two, near], 1.0) is None
    assert "1 boxes instead of 2" in (disagreement([one, two], [one], 1.0) or "")
    assert "px away" in (disagreement([one], [("a", (12.0, 8.0, 24.0, 21.0))], 1.0) or "")
    assert "classes b instead of a" in (disagreement([one], [("b", BOX)], 1.0) or "")
    assert disagreement([one, one], [one, two], 1.0) is not None
