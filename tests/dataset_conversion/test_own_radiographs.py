"""COCO, YOLO and VOC folders of anybody's radiographs: splits, negatives, names, and every fault named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_conversion.items import split_name
from dataset_conversion.radiographs import make_folds
from dataset_conversion.tables import unique_cases
from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.io.radiographs import read_radiograph
from tests.dataset_conversion.own_trees import KINDS, NAMES, PARTS, box, boxes_of, convert, make
from tests.dataset_conversion.radiograph_trees import (
    HEIGHT,
    WIDTH,
    Box,
    picture,
    save_jpeg,
    write_coco,
    write_voc,
    write_yolo,
)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_names_and_negatives_arrive(tmp_path: Path, kind: str) -> None:
    result = convert(kind, make(kind, tmp_path / "own"), tmp_path / "root")
    assert result.ok and result.conversion.converted == tuple(f"x{n}" for n in range(9))
    assert DatasetDescription.load(result.folder / "dataset.json").categories == NAMES
    assert result.conversion.lists["negative"] == ("x2", "x5", "x8")
    for n in range(9):
        found = BoxAnnotation.load(result.folder / f"labelsTr/x{n}.json")
        assert found.names == tuple(NAMES[i] for i, _ in boxes_of(n))
        np.testing.assert_allclose(
            found.array(), np.array([b for _, b in boxes_of(n)], np.float32).reshape(-1, 4), atol=0.02
        )
    assert len(json.loads((result.folder / "splits_final.json").read_text())) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_official_splits_are_fold_0_and_test(tmp_path: Path, kind: str) -> None:
    result = convert(kind, make(kind, tmp_path / "own", PARTS), tmp_path / "root")
    assert result.ok
    (fold,) = json.loads((result.folder / "splits_final.json").read_text())
    assert fold == {"train": [f"x{n}" for n in range(6)], "val": ["x6", "x7"]}
    assert [p.name for p in (result.folder / "labelsTs").glob("*")] == ["x8.json"]


@pytest.mark.parametrize("kind", KINDS)
def test_negatives_and_classes_are_chosen(tmp_path: Path, kind: str) -> None:
    result = convert(kind, make(kind, tmp_path / "own"), tmp_path / "root", ("implant", "fracture"), negatives="none")
    assert len(result.conversion.converted) == 6
    assert DatasetDescription.load(result.folder / "dataset.json").categories == ("implant", "fracture")


@pytest.mark.parametrize("kind", KINDS)
def test_faults_are_named_and_the_rest_is_converted(tmp_path: Path, kind: str) -> None:
    """x0: unreadable; x1: a box without area; x3: its image is gone; x4: half outside; x6: the same image as x7, its
    boxes twice.
    """
    source = make(kind, tmp_path / "own")
    images = {p.stem: p for p in source.rglob("*.jpg")}
    images["x0"].write_bytes(b"no image")
    images["x3"].unlink()
    shutil.copy(images["x7"], images["x6"])
    new: dict[int, list[tuple[int, Box]]] = {
        1: [(1, (9, 9, 9, 20))],
        4: [(0, (50, 20, 70, 30))],
        6: [(0, box(6)), (0, box(6))],
    }
    for n, boxes in new.items():
        if kind == "yolo":
            write_yolo(source / f"labels/x{n}.txt", boxes)
        if kind == "voc":
            write_voc(source / f"Annotations/x{n}.xml", f"x{n}.jpg", [(NAMES[i], b) for i, b in boxes])
    if kind == "coco":
        contents = {f"x{n}.jpg": (WIDTH, HEIGHT, [(10 + i, b) for i, b in new.get(n, boxes_of(n))]) for n in range(9)}
        write_coco(source / "annotations/instances_all.json", contents, {11: NAMES[1], 10: NAMES[0]})
    result = convert(kind, source, tmp_path / "root")
    assert not result.ok and result.verification.ok
    assert result.conversion.left_out == ("x0", "x1", "x3")
    text = result.conversion.text()
    assert "no area" in text and "10 px outside" in text and "twice" in text and "different classes" in text
    assert result.conversion.lists["duplicates"] == ("x6 = x7",)
    assert BoxAnnotation.load(result.folder / "labelsTr/x4.json").boxes[0][2] == WIDTH
    folds = json.loads((result.folder / "splits_final.json").read_text())
    assert all(("x6" in fold["val"]) == ("x7" in fold["val"]) for fold in folds)


def test_unknown_numbers_are_errors(tmp_path: Path) -> None:
    source = make("yolo", tmp_path / "y")
    write_yolo(source / "labels/x0.txt", [(5, box(0))])
    report = convert("yolo", source, tmp_path / "a").conversion
    assert report.left_out == ("x0",) and "'class 5'" in report.problems[0].text()
    source = make("coco", tmp_path / "c")
    write_coco(source / "annotations/instances_all.json", {"x0.jpg": (WIDTH, HEIGHT, [(77, box(0))])}, {10: "fracture"})
    with pytest.raises(DataError, match="category_id 77"):
        convert("coco", source, tmp_path / "b")


def test_yolo_without_yaml_takes_a_list_of_names_or_the_labels(tmp_path: Path) -> None:
    source = make("yolo", tmp_path / "y")
    (source / "data.yaml").unlink()
    with pytest.raises(DataError, match="--labels"):
        convert("yolo", source, tmp_path / "a")
    assert convert("yolo", source, tmp_path / "b", NAMES).ok
    (source / "classes.txt").write_text("fracture\nimplant\n")
    assert convert("yolo", source, tmp_path / "c").ok


def test_roboflow_folders_and_yolo_lists_are_understood(tmp_path: Path) -> None:
    source = tmp_path / "r"
    for part, numbers in {"train": range(3), "valid": range(3, 5)}.items():
        for n in numbers:
            save_jpeg(source / part / f"images/x{n}.jpg", picture(n))
            write_yolo(source / part / f"labels/x{n}.txt", boxes_of(n))
    (source / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: [fracture, implant]\n")
    (fold,) = json.loads((convert("yolo", source, tmp_path / "a").folder / "splits_final.json").read_text())
    assert fold["val"] == ["x3", "x4"]
    (source / "val.txt").write_text("train/images/x0.jpg\n")
    (source / "data.yaml").write_text("train: train/images\nval: val.txt\nnames: [fracture, implant]\n")
    result = convert("yolo", source, tmp_path / "b")
    (fold,) = json.loads((result.folder / "splits_final.json").read_text())
    assert fold == {"train": ["x1", "x2"], "val": ["x0"]}
    assert "2 images" in result.conversion.warnings[0].text(), "those that data.yaml does not name are no negatives"


def test_a_split_is_a_whole_word_of_a_folder_or_annotation_file() -> None:
    source = Path("/data")
    names = {
        "train/a.json": "train",
        "a/instances_val2017.json": "val",
        "Validation/x": "val",
        "latest/a.json": None,
        "test-set/b": "test",
    }
    assert {name: split_name(source / name, source) for name in names} == names


def test_an_image_called_test_is_not_a_test_image(tmp_path: Path) -> None:
    source = make("yolo", tmp_path / "y")
    save_jpeg(source / "images/test.jpg", picture(50))
    assert not list((convert("yolo", source, tmp_path / "root").folder).glob("labelsTs/*"))


def test_an_image_in_two_parts_is_in_neither_and_named(tmp_path: Path) -> None:
    source = make("coco", tmp_path / "own", PARTS)
    images = {f"x{n}.jpg": (WIDTH, HEIGHT, [(10, box(n))]) for n in (5, 6, 7)}
    write_coco(source / "annotations/instances_val.json", images, {11: NAMES[1], 10: NAMES[0]})
    result = convert("coco", source, tmp_path / "root")
    assert result.conversion.left_out == ("x5",)
    (problem,) = result.conversion.problems
    assert problem.case == "x5" and "it in train and val" in problem.text()


def test_images_of_the_same_name_in_two_folders_get_different_ids(tmp_path: Path) -> None:
    source = tmp_path / "y"
    for part in ("train", "val"):
        save_jpeg(source / f"images/{part}/scan.jpg", picture(len(part)))
        write_yolo(source / f"labels/{part}/scan.txt", boxes_of(0))
    (source / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [fracture]\n")
    result = convert("yolo", source, tmp_path / "root")
    assert result.conversion.converted == ("images_train_scan", "images_val_scan")


def test_coco_drawn_on_the_image_as_stored_keeps_that_frame(tmp_path: Path) -> None:
    """Some tools ignore EXIF: the size that they state tells."""
    source, stored = tmp_path / "c", picture(1, box=box(1))
    for turn, name in ((6, "a.jpg"), (1, "b.jpg")):
        save_jpeg(source / name, np.rot90(stored, -1) if turn == 6 else picture(2), turn)
    write_coco(source / "a.json", {n: (WIDTH, HEIGHT, [(0, box(1))]) for n in ("a.jpg", "b.jpg")}, {0: "fracture"})
    result = convert("coco", source, tmp_path / "root")
    assert result.ok and [f.case for f in result.conversion.warnings] == ["a"]
    found = read_radiograph(result.folder / "imagesTr/a_0000.png").pixels
    assert found.shape == (HEIGHT, WIDTH) and found[8:16, 8:19].min() > 200


def test_an_unlisted_image_is_not_taken_for_a_negative_in_coco(tmp_path: Path) -> None:
    source = make("coco", tmp_path / "own")
    save_jpeg(source / "images/extra.jpg", picture(77))
    report = convert("coco", source, tmp_path / "root").conversion
    assert report.ok and "extra" not in report.converted and "extra.jpg" in report.warnings[0].text()


def test_a_crowd_is_kept_to_be_ignored_and_no_size_is_measured(tmp_path: Path) -> None:
    source = make("coco", tmp_path / "own")
    path = source / "annotations/instances_all.json"
    data = json.loads(path.read_text())
    crowd = data["annotations"][0]
    crowd |= {"iscrowd": 1, "image_id": data["images"][2]["id"], "segmentation": {"size": [9, 9], "counts": "a"}}
    data["images"][1]["width"] = None
    path.write_text(json.dumps(data))
    converted = convert("coco", source, tmp_path / "root", negatives="none")
    report = converted.conversion
    assert report.ok and "x1" in report.converted
    assert "x2" in report.converted, "an image with a crowd alone is no negative either"
    label = BoxAnnotation.load(converted.folder / "labelsTr" / "x2.json")
    left, top, width, height = crowd["bbox"]
    assert len(label.ignored) == len(label.ignored_names) == 1
    assert label.ignored[0] == pytest.approx((left, top, left + width, top + height), abs=1e-6)
    assert all(box != label.ignored[0] for box in label.boxes)


def test_eighty_classes_keep_the_order_of_their_ids(tmp_path: Path) -> None:
    source = make("coco", tmp_path / "own")
    path = source / "annotations/instances_all.json"
    data = json.loads(path.read_text())
    numbers = [number for number in range(1, 91) if number % 9]  # with gaps, like COCO's
    data["categories"] = [{"id": number, "name": f"thing {number}"} for number in reversed(numbers)]
    for place, annotation in enumerate(data["annotations"]):
        annotation["category_id"] = numbers[place]
    path.write_text(json.dumps(data))
    converted = convert("coco", source, tmp_path / "root")
    description = DatasetDescription.load(converted.folder / "dataset.json")
    assert converted.conversion.ok
    assert list(description.categories) == [f"thing {number}" for number in numbers] and len(numbers) == 80


def test_lists_with_a_byte_order_mark_lose_no_image(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    voc, yolo = make("voc", tmp_path / "v", PARTS), make("yolo", tmp_path / "y")
    path = voc / "ImageSets/Main/val.txt"
    path.write_bytes(mark + path.read_bytes())
    (yolo / "val.txt").write_bytes(mark + b"images/x6.jpg\nimages/x7.jpg\n")
    (yolo / "data.yaml").write_text("train: images\nval: val.txt\nnames: [fracture, implant]\n")
    (yolo / "labels/x5.txt").write_bytes(mark)
    for kind, source in (("voc", voc), ("yolo", yolo)):
        result = convert(kind, source, tmp_path / kind / "root", negatives="none" if kind == "yolo" else "all")
        (fold,) = json.loads((result.folder / "splits_final.json").read_text())
        assert fold["val"] == ["x6", "x7"] and result.ok and ("x5" in fold["train"]) == (kind == "voc")


def test_a_damaged_xml_leaves_its_image_out_instead_of_calling_it_negative(tmp_path: Path) -> None:
    source = make("voc", tmp_path / "own")
    (source / "Annotations/x0.xml").write_text("<annotation>")
    report = convert("voc", source, tmp_path / "root").conversion
    assert report.left_out == ("x0",) and "x0" not in report.converted


def test_different_images_of_one_name_are_different_cases_and_a_shared_label_file_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "y"
    boxes: dict[str, Box] = {"a b": (5, 6, 20, 18), "a_b": (30, 6, 45, 18), "c": (10, 10, 25, 22)}
    for n, name in enumerate(("a b.png", "a_b.png", "c.png", "c.bmp")):
        (source / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(n, box=boxes[Path(name).stem])).save(source / "images" / name)
        write_yolo(source / f"labels/{Path(name).stem}.txt", [(0, boxes[Path(name).stem])])
    (source / "data.yaml").write_text("names: [fracture]\n")
    report = convert("yolo", source, tmp_path / "root")
    assert report.conversion.converted == ("images_a_b", "images_a_b_2")
    assert report.conversion.left_out == ("images_c", "images_c_2")
    assert (
        "c.png as well" in report.conversion.problems[0].text()
        and "c.bmp as well" in report.conversion.problems[1].text()
    )
    for case, name in {"images_a_b": "a b", "images_a_b_2": "a_b"}.items():
        (found,) = BoxAnnotation.load(report.folder / f"labelsTr/{case}.json").boxes
        np.testing.assert_allclose(found, boxes[name], atol=0.02)
        left, top, right, bottom = (round(v) for v in found)
        assert read_radiograph(report.folder / f"imagesTr/{case}_0000.png").pixels[top:bottom, left:right].min() == 240
    (source / "images/c.bmp").unlink()
    assert convert("yolo", source, tmp_path / "root").ok


def test_an_image_elsewhere_does_not_take_the_label_file_of_its_namesake(tmp_path: Path) -> None:
    source = make("yolo", tmp_path / "y")
    save_jpeg(source / "previews/x0.jpg", picture(99))
    report = convert("yolo", source, tmp_path / "root").conversion
    assert report.left_out == ("previews_x0",) and "images_x0" in report.converted


def test_case_ids_are_unique_whatever_the_names() -> None:
    paths = [
        Path("/s") / name
        for name in ("a b.png", "a_b.png", "s_a_b_2.png", "s/a b.png", "p/q.png", "p_q.jpg", "q.png", "d.png")
    ]
    names = unique_cases(paths, Path("/s"))
    assert len(set(names.values())) == len(paths) and names[Path("/s/d.png")] == "d"
    assert names == unique_cases(reversed(paths), Path("/s"))


@pytest.mark.parametrize("kind", KINDS)
def test_empty_folders_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none"):
        convert(kind, tmp_path / "none", tmp_path / "root", NAMES)
    assert not (tmp_path / "root").exists()


Counts = dict[str, list[int]]


@pytest.mark.parametrize("make_classes", [lambda i: [1], lambda i: [1] if i % 4 else [], lambda i: [1 + (i == 7)]])
def test_folds_are_a_partition_balanced_by_class_whatever_the_classes(make_classes: Callable[[int], list[int]]) -> None:
    classes: Counts = {f"c{i:03d}": make_classes(i) for i in range(60)}
    split = make_folds(classes, {f"c{i:03d}": f"g{i // 2}" for i in range(60)})
    assert split is not None and len(split.folds) == 5
    assert sorted(c for _, val in split.folds for c in val) == sorted(classes)
    for train, val in split.folds:
        assert set(train) | set(val) == set(classes) and not {int(c[1:]) // 2 for c in train} & {
            int(c[1:]) // 2 for c in val
        }
        assert abs(len(val) - 12) <= 2
    negatives = [sum(not classes[c] for c in val) for _, val in split.folds]
    assert max(negatives) - min(negatives) <= 2
    assert split == make_folds(dict(reversed(classes.items())), {f"c{i:03d}": f"g{i // 2}" for i in range(60)})


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_few_groups_give_few_folds(groups: int) -> None:
    split = make_folds({f"c{i}": [1] for i in range(8)}, {f"c{i}": f"g{i % groups}" for i in range(8)})
    assert (
        split is None
        if groups == 1
        else split is not None and len(split.folds) == groups and all(v for _, v in split.folds)
    )
