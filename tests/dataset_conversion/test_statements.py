"""Statements that match nothing, or contradict each other: errors that name the entry, never a default, a negative or
"train".
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset_conversion.boxes import clean_boxes
from dataset_conversion.convert import Converted
from dataset_conversion.read_coco import read_coco
from dataset_conversion.read_yolo import read_yolo
from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from tests.dataset_conversion.own_trees import KINDS, NAMES, PARTS, box, boxes_of, convert, make
from tests.dataset_conversion.radiograph_trees import (
    HEIGHT,
    WIDTH,
    picture,
    save_jpeg,
    write_coco,
    write_voc,
    write_yolo,
)

Respell = Callable[[str], str]
RESPELLINGS: dict[str, Respell] = {
    "another machine": lambda name: f"/home/me/sets/export 3/{name}",
    "windows": lambda name: f"D:\\sets\\{name}".replace("/", "\\"),
    "backslashes": lambda name: name.replace("/", "\\"),
    "address": lambda name: "file:///home/me/" + name.replace("x", "%78"),
    "dots": lambda name: f"./{Path(name).parent}/../{name.removeprefix('images/')}" if "/" in name else f"./{name}",
    "capitals": lambda name: name.upper(),
}


def parts_of(result: Converted) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"train": list(result.conversion.converted), "val": [], "test": []}
    split = result.folder / "splits_final.json"
    if split.exists():
        folds = json.loads(split.read_text())
        if len(folds) == 1:
            found |= folds[0]
    found["test"] = sorted(path.stem for path in (result.folder / "labelsTs").glob("*.json"))
    return found


EXPECTED = {"train": [f"x{n}" for n in range(6)], "val": ["x6", "x7"], "test": ["x8"]}


@pytest.mark.parametrize("spelling", RESPELLINGS)
@pytest.mark.parametrize("named", [True, False])
def test_the_lists_of_yolo_mean_the_same_on_any_machine(tmp_path: Path, spelling: str, named: bool) -> None:
    source = make("yolo", tmp_path / "y")
    lists = {"train": range(6), "val": range(6, 8), "test": range(8, 9)}
    for part, numbers in lists.items():
        lines = [RESPELLINGS[spelling](f"images/x{n}.jpg") for n in numbers]
        (source / f"{part}.txt").write_text("\n".join(lines))
    entries = "".join(f"{part}: {part}.txt\n" for part in lists) if named else ""
    (source / "data.yaml").write_text(f"path: /home/me/elsewhere\n{entries}names: [fracture, implant]\n")
    result = convert("yolo", source, tmp_path / "root")
    assert result.ok, result.conversion.text()
    assert parts_of(result) == EXPECTED


def test_published_test_images_stay_out_of_training_where_train_is_a_folder(tmp_path: Path) -> None:
    source = make("yolo", tmp_path / "y")
    (source / "test.txt").write_text("C:\\sets\\images\\x8.jpg\n")
    (source / "data.yaml").write_text("train: images\ntest: test.txt\nnames: [fracture, implant]\n")
    result = convert("yolo", source, tmp_path / "root")
    assert result.ok and parts_of(result)["test"] == ["x8"]


def test_a_line_that_names_nothing_or_several_is_named(tmp_path: Path) -> None:
    source = make("yolo", tmp_path / "y")
    save_jpeg(source / "more/x1.jpg", picture(80))
    (source / "test.txt").write_text("images/x8.jpg\nimages/x77.jpg\nx1.jpg\n")
    (source / "data.yaml").write_text("train: images\ntest: test.txt\nnames: [fracture, implant]\n")
    result = convert("yolo", source, tmp_path / "root")
    texts = [finding.text() for finding in result.conversion.problems]
    assert not result.ok and len(texts) == 2
    assert "test.txt, line 2" in texts[0] + texts[1] and "'images/x77.jpg', which is not there" in texts[0] + texts[1]
    assert "line 3" in texts[0] + texts[1] and "is there 2 times" in texts[0] + texts[1]
    (source / "test.txt").write_text("other/y.jpg\n")
    with pytest.raises(DataError, match=r"test\.txt: none of its 1 lines names an image .* 'other/y\.jpg'"):
        convert("yolo", source, tmp_path / "b")


@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_an_image_in_two_lists_is_in_neither_part(tmp_path: Path, kind: str) -> None:
    source = make(kind, tmp_path / "own", PARTS if kind == "voc" else None)
    lists = {"train": range(7), "val": range(6, 8), "test": range(8, 9)}
    for part, numbers in lists.items():
        folder = source / "ImageSets/Main" if kind == "voc" else source
        (folder / f"{part}.txt").write_text("\n".join(f"x{n}.jpg" for n in numbers))
    result = convert(kind, source, tmp_path / "root")
    assert result.conversion.left_out == ("x6",) and "x6" not in result.conversion.converted
    assert "train and val" in result.conversion.problems[0].text()


def test_one_folder_for_two_parts_is_refused(tmp_path: Path) -> None:
    source = make("yolo", tmp_path / "y")
    (source / "data.yaml").write_text("train: images\nval: ./images\nnames: [fracture, implant]\n")
    with pytest.raises(DataError, match="different folders for 'train' and 'val'"):
        convert("yolo", source, tmp_path / "root")


def test_images_in_no_list_of_voc_are_not_trained_on(tmp_path: Path) -> None:
    source = make("voc", tmp_path / "v", PARTS)
    (source / "ImageSets/Main/train.txt").write_text("x0 1\nx1 -1\n x2\nx3\n")
    result = convert("voc", source, tmp_path / "root")
    assert result.ok and parts_of(result)["train"] == ["x0", "x1", "x2", "x3"]
    assert "2 in none of them" in result.conversion.warnings[0].text()
    (source / "ImageSets/Main/train.txt").rename(source / "ImageSets/Main/trainval.txt")
    with (source / "ImageSets/Main/trainval.txt").open("a") as stream:
        stream.write("x4\nx5\nx6\nx7\n")
    assert parts_of(convert("voc", source, tmp_path / "b")) == EXPECTED


def shifted_voc(source: Path) -> Path:
    """Eight XML files, each of which states the next one's image (DDR-dataset's issue 11)."""
    for n in range(8):
        save_jpeg(source / f"JPEGImages/x{n}.jpg", picture(n, box=box(n)))
        write_voc(source / f"Annotations/x{n}.xml", f"x{(n + 1) % 8}.jpg", [(NAMES[n % 2], box(n))])
    return source


def test_a_filename_that_is_another_image_is_a_contradiction(tmp_path: Path) -> None:
    source = shifted_voc(tmp_path / "v")
    with pytest.raises(DataError, match=r"x0\.xml: .*<filename> x1\.jpg, which is another image than x0\.jpg.*--match"):
        convert("voc", source, tmp_path / "a")
    result = convert("voc", source, tmp_path / "b", match="stem")
    assert result.ok
    for n in range(8):
        np.testing.assert_allclose(BoxAnnotation.load(result.folder / f"labelsTr/x{n}.json").boxes, [box(n)])
    other = convert("voc", source, tmp_path / "c", match="filename")
    np.testing.assert_allclose(BoxAnnotation.load(other.folder / "labelsTr/x1.json").boxes, [box(0)])


def test_of_contradicting_files_no_image_becomes_a_negative(tmp_path: Path) -> None:
    source = make("voc", tmp_path / "v")
    (source / "Annotations/x3.xml").unlink()
    write_voc(source / "Annotations/x0.xml", "x3.jpg", [(NAMES[0], box(0))])
    report = convert("voc", source, tmp_path / "root").conversion
    assert report.left_out == ("x0",) and not {"x0", "x3"} & set(report.converted)


def test_a_filename_of_long_ago_is_said_once(tmp_path: Path) -> None:
    source = make("voc", tmp_path / "v")
    for n in (0, 1):
        write_voc(source / f"Annotations/x{n}.xml", f"/old/IMG_{n}.jpg", [(NAMES[n % 2], box(n))])
    report = convert("voc", source, tmp_path / "root").conversion
    assert report.ok and len(report.converted) == 9
    assert [f.text() for f in report.warnings if "2 that name none, such as '/old/IMG_0.jpg'" in f.text()]
    assert not convert("voc", source, tmp_path / "b", match="stem").conversion.warnings


@pytest.mark.parametrize("spelling", RESPELLINGS)
@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_annotations_name_their_images_on_any_machine(tmp_path: Path, kind: str, spelling: str) -> None:
    source = make(kind, tmp_path / "own")
    respell = RESPELLINGS[spelling]
    if kind == "coco":
        path = source / "annotations/instances_all.json"
        data = json.loads(path.read_text())
        for image in data["images"]:
            image["file_name"] = respell("images/" + image["file_name"])
        path.write_text(json.dumps(data))
    else:
        for path in (source / "Annotations").glob("*.xml"):
            name = f"{path.stem}.jpg"
            path.write_text(path.read_text().replace(name, respell(f"JPEGImages/{name}")))
    result = convert(kind, source, tmp_path / "root")
    assert result.ok and len(result.conversion.converted) == 9, result.conversion.text()
    for n in range(9):
        found = BoxAnnotation.load(result.folder / f"labelsTr/x{n}.json")
        assert found.names == tuple(NAMES[i] for i, _ in boxes_of(n))


def test_accents_composed_in_another_way_are_the_same_name(tmp_path: Path) -> None:
    source = tmp_path / "c"
    save_jpeg(source / unicodedata.normalize("NFD", "Hüfte.jpg"), picture(1))
    write_coco(source / "a.json", {unicodedata.normalize("NFC", "Hüfte.jpg"): (WIDTH, HEIGHT, [(0, box(1))])}, {0: "a"})
    assert convert("coco", source, tmp_path / "root").ok


def test_a_folder_that_is_there_decides(tmp_path: Path) -> None:
    """``a/1.jpg`` is not ``b/1.jpg``, also where the former is missing."""
    source = tmp_path / "c"
    for name in ("a/2.jpg", "b/1.jpg", "b/3.jpg"):
        save_jpeg(source / name, picture(len(name) + ord(name[0])))
    boxes = {name: (WIDTH, HEIGHT, [(0, box(1))]) for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg")}
    write_coco(source / "all.json", boxes, {0: "fracture"})
    report = convert("coco", source, tmp_path / "root").conversion
    assert report.converted == ("2", "3") and "a/1.jpg" in report.problems[0].text()


def edited_coco(tmp_path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    source = make("coco", tmp_path / "own")
    path = source / "annotations/instances_all.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return source


def ids_as_text(data: dict[str, Any]) -> None:
    for annotation in data["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
        annotation["category_id"] = float(annotation["category_id"])


def test_ids_of_coco_may_be_text(tmp_path: Path) -> None:
    result = convert("coco", edited_coco(tmp_path, ids_as_text), tmp_path / "root")
    assert result.ok and result.conversion.lists["negative"] == ("x2", "x5", "x8")
    assert DatasetDescription.load(result.folder / "dataset.json").categories == NAMES


def test_annotations_of_no_image_make_no_negatives(tmp_path: Path) -> None:
    def all_of_them(data: dict[str, Any]) -> None:
        for annotation in data["annotations"]:
            annotation["image_id"] = f"img-{annotation['image_id']}"

    with pytest.raises(DataError, match=r"none of its 6 annotations belongs to a listed image.*'img-1'"):
        convert("coco", edited_coco(tmp_path, all_of_them), tmp_path / "root")
    source = edited_coco(tmp_path, lambda data: data["annotations"][0].update(image_id=77))
    report = convert("coco", source, tmp_path / "b").conversion
    assert report.converted == ("x1", "x3", "x4", "x6", "x7") and report.left_out == ("x0", "x2", "x5", "x8")
    assert "image_id 77" in " ".join(finding.text() for finding in report.problems)


def test_one_id_for_two_images_is_refused(tmp_path: Path) -> None:
    source = edited_coco(tmp_path, lambda data: data["images"][1].update(id=1))
    with pytest.raises(DataError, match=r"found 1 for x0\.jpg and x1\.jpg"):
        convert("coco", source, tmp_path / "root")


def test_boxes_as_fractions_or_corners_are_refused(tmp_path: Path) -> None:
    def fractions(data: dict[str, Any]) -> None:
        for annotation in data["annotations"]:
            x, y, w, h = annotation["bbox"]
            annotation["bbox"] = [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]

    def corners(data: dict[str, Any]) -> None:
        for annotation in data["annotations"]:
            annotation["bbox"] = [30, 20, 50, 38]

    report = convert("coco", edited_coco(tmp_path, fractions), tmp_path / "a").conversion
    assert len(report.problems) == 6 and all("fractions of the image" in f.text() for f in report.problems)
    assert set(report.converted) == {"x2", "x5", "x8"}
    with pytest.raises(DataError, match="all 6 of them are corners"):
        convert("coco", edited_coco(tmp_path, corners), tmp_path / "b")


def test_fractions_in_voc_are_refused_too(tmp_path: Path) -> None:
    source = make("voc", tmp_path / "v")
    path = source / "Annotations/x0.xml"
    path.write_text(path.read_text().replace("<xmin>5", "<xmin>0.1").replace("<xmax>20", "<xmax>0.4"))
    text = path.read_text().replace("<ymin>6", "<ymin>0.2").replace("<ymax>18", "<ymax>0.6")
    path.write_text(text)
    report = convert("voc", source, tmp_path / "root").conversion
    assert report.left_out == ("x0",) and "fractions" in report.problems[0].text()


@pytest.mark.parametrize(
    ("names", "text"), [(("background", "b"), "'background'.*--labels b"), (("Fracture", "fracture"), "capitals")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_classes_that_cannot_be_are_refused_before_anything_is_converted(
    tmp_path: Path, kind: str, names: tuple[str, str], text: str
) -> None:
    source = make(kind, tmp_path / "own")
    for path in [*source.rglob("*.json"), *source.rglob("*.xml"), *source.rglob("*.yaml")]:
        path.write_text(path.read_text().replace("fracture", names[0]).replace("implant", names[1]))
    with pytest.raises(DataError, match=text):
        convert(kind, source, tmp_path / "root")
    assert not (tmp_path / "root").exists()
    if names[0] == "background":
        assert convert(kind, source, tmp_path / "root", ("b",)).conversion.ok


def test_each_line_of_yolo_is_read_by_itself(tmp_path: Path) -> None:
    """Boxes beside polygons, and boxes with their polygon or key points behind them (ultralytics' issue 2454)."""
    path, size = tmp_path / "a.txt", (1000, 800)
    lines = [
        "0 0.5 0.5 0.2 0.1",
        "0 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4",
        "0 0.5 0.5 0.2 0.1 0.4 0.45 0.6 0.45 0.6 0.55 0.4 0.55",
    ]
    path.write_text("\n".join(lines))
    found = [found for _, found in read_yolo(path, ("a",), size).boxes]
    np.testing.assert_allclose(found, [(400, 360, 600, 440), (100, 160, 300, 320), (400, 360, 600, 440)], atol=1e-6)
    path.write_text("0 0.5 0.5 0.2 0.1 0.9 0.9 2 0.1 0.1 2\n")
    found = [found for _, found in read_yolo(path, ("a",), size, key_points=6).boxes]
    np.testing.assert_allclose(found, [(400, 360, 600, 440)], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_macos_adds_are_passed_over(tmp_path: Path, kind: str) -> None:
    source = make(kind, tmp_path / "own", PARTS)
    for path in [path for path in source.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
        beside = source / "__MACOSX" / path.relative_to(source)
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    result = convert(kind, source, tmp_path / "root")
    assert result.ok and not result.conversion.warnings, result.conversion.text()
    assert parts_of(result) == EXPECTED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", ["dangling", "pipe", "zero"])
def test_what_is_no_file_is_named_and_does_not_hang(tmp_path: Path, kind: str, odd: str) -> None:
    source = make(kind, tmp_path / "own")
    (image,) = source.rglob("x0.jpg")
    image.unlink()
    if odd == "pipe":
        os.mkfifo(image)
    else:
        image.symlink_to("/dev/zero" if odd == "zero" else "nowhere")
    report = convert(kind, source, tmp_path / "root").conversion
    assert report.left_out == ("x0",)
    expected = {"dangling": "a link to nowhere", "pipe": "a named pipe", "zero": "a device"}[odd]
    assert expected in report.problems[0].text()


def test_a_truncated_coco_file_is_not_passed_over(tmp_path: Path) -> None:
    source = make("coco", tmp_path / "own", PARTS)
    path = source / "annotations/instances_test.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match=r"instances_test\.json is not valid JSON"):
        convert("coco", source, tmp_path / "root")


def test_a_coco_file_that_says_no_part_beside_others_is_not_training(tmp_path: Path) -> None:
    source = make("coco", tmp_path / "own", PARTS)
    (source / "annotations/instances_test.json").rename(source / "annotations/rest.json")
    report = convert("coco", source, tmp_path / "root").conversion
    assert "x8" not in report.converted and "rest.json" in report.problems[0].text()


def test_fractions_are_told_from_small_boxes() -> None:
    from dataset_conversion.boxes import Drawn

    drawn = Drawn(Path("f"), (("a", (3.0, 3.0, 3.9, 3.9)),))
    assert clean_boxes("c", drawn, (60, 40), ("a",))[1] == []


def test_an_id_may_have_any_text(tmp_path: Path) -> None:
    data = {
        "images": [{"id": "a-1", "file_name": "i.png"}],
        "annotations": [{"image_id": "a-1", "category_id": "k", "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": "k", "name": "fracture"}, {"id": 3, "name": "implant"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    found = read_coco(tmp_path / "a.json")
    assert found.images["i.png"].boxes == (("fracture", (1, 2, 4, 6)),) and found.categories == ("implant", "fracture")


def test_an_empty_list_of_yolo_says_nothing(tmp_path: Path) -> None:
    source = make("yolo", tmp_path / "y")
    write_yolo(source / "labels/x2.txt", [])
    (source / "val.txt").write_text("\n")
    assert len(convert("yolo", source, tmp_path / "root").conversion.converted) == 9
