"""What downloads suffer on their way is named, and no image becomes a negative or vanishes because of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from medkd.core.errors import DataError
from tests.dataset_conversion import own_trees
from tests.dataset_conversion.radiograph_trees import make_graz
from tests.dataset_conversion.trees import convert, folds, make_acdc, make_nnunet, make_synapse, make_word


def own(kind: str, tmp_path: Path) -> Path:
    return own_trees.make(kind, tmp_path / "own", own_trees.PARTS)


def test_a_coco_file_in_capitals_or_in_utf_16_is_not_passed_over(tmp_path: Path) -> None:
    source = own("coco", tmp_path)
    path = source / "annotations/instances_train.json"
    path.rename(path.with_suffix(".JSON"))
    result = own_trees.convert("coco", source, tmp_path / "root")
    assert result.conversion.ok and len(folds(result.folder)[0]["train"]) == 6
    text = path.with_suffix(".JSON").read_text()
    path.with_suffix(".JSON").write_bytes(text.encode("utf-16"))
    with pytest.raises(DataError, match=r"instances_train\.JSON"):
        own_trees.convert("coco", source, tmp_path / "other")


def test_a_coco_file_without_annotations_makes_no_negatives(tmp_path: Path) -> None:
    source = own("coco", tmp_path)
    path = source / "annotations/instances_train.json"
    data = json.loads(path.read_text())
    del data["annotations"]
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"'annotations'.*found KeyError"):
        own_trees.convert("coco", source, tmp_path / "root")


def test_an_emptied_json_file_is_said(tmp_path: Path) -> None:
    source = own("coco", tmp_path)
    (source / "annotations/instances_test.json").write_bytes(b"")
    warnings = own_trees.convert("coco", source, tmp_path / "root").conversion.warnings
    assert any("instances_test.json" in warning.text() for warning in warnings)


@pytest.mark.parametrize("old", ["<object>", "</object>"])
def test_a_misspelt_object_makes_no_negative(tmp_path: Path, old: str) -> None:
    source = own("voc", tmp_path)
    path = source / "Annotations/x0.xml"
    text = path.read_text()
    for tag in ("<object>", "</object>"):
        text = text.replace(tag, tag.replace("object", "Object"))
    path.write_text(text if old == "<object>" else text.replace("</Object>", ""))
    report = own_trees.convert("voc", source, tmp_path / "root").conversion
    assert "x0" in report.left_out and "x0" not in report.lists.get("negative", ())


@pytest.mark.parametrize(("kind", "name"), [("yolo", "labels/train/x0.txt"), ("voc", "Annotations/x0.xml")])
def test_a_folder_in_the_place_of_an_annotation_makes_no_negative(tmp_path: Path, kind: str, name: str) -> None:
    source = own(kind, tmp_path)
    (source / name).unlink()
    (source / name).mkdir()
    report = own_trees.convert(kind, source, tmp_path / "root").conversion
    assert "x0" in report.left_out and "x0" not in report.lists.get("negative", ())


def test_a_folder_in_the_place_of_a_negative_is_named(tmp_path: Path) -> None:
    source = own("yolo", tmp_path)
    (source / "images/train/x2.jpg").unlink()
    (source / "images/train/x2.jpg").mkdir()
    report = own_trees.convert("yolo", source, tmp_path / "root").conversion
    assert report.left_out == ("x2",) and "a folder" in report.problems[0].text()


def test_the_first_slice_is_missed_where_other_cases_have_one(tmp_path: Path) -> None:
    source = make_synapse(tmp_path / "Synapse")
    (source / "train_npz/case0006_slice000.npz").unlink()
    report = convert("synapse_slices", source, tmp_path / "root").conversion
    assert report.left_out == ("case0006",) and "no slice 0" in report.problems[0].text()


def test_slices_and_lists_in_capitals_are_those_of_their_case(tmp_path: Path) -> None:
    source = make_acdc(tmp_path / "ACDC", patients=3)
    (source / "val.list").rename(source / "VAL.LIST")
    for path in (source / "data").glob("*.h5"):
        path.unlink()
    path = source / "data/slices/patient001_frame01_slice_3.h5"
    path.rename(path.with_name(path.name.upper()))
    result = convert("acdc_h5", source, tmp_path / "root")
    assert result.ok, result.conversion.text()
    assert folds(result.folder)[0]["val"] == ["patient002_frame01", "patient002_frame12"]
    (source / "VAL.LIST").rename(source / "valx.list")
    warnings = convert("acdc_h5", source, tmp_path / "other").conversion.warnings
    assert "valx.list" in warnings[0].text()


def test_a_label_map_of_no_test_scan_is_named(tmp_path: Path) -> None:
    source = make_word(tmp_path / "word", 2, 1, 1)
    labels = source / "WORD-V0.1.0/labelsTs"
    (labels / "word_0004.nii.gz").rename(labels / "word_4.nii.gz")
    report = convert("word", source, tmp_path / "root").conversion
    assert report.left_out == ("word_4",)


def test_files_of_no_case_and_a_dangling_label_of_a_test_case_are_named(tmp_path: Path) -> None:
    source = make_nnunet(tmp_path, cases=3)
    shutil.copy(source / "imagesTs/thing_03_0000.nii.gz", source / "imagesTs/thing_04.nii.gz")
    (source / "labelsTs/thing_03.nii.gz").unlink()
    (source / "labelsTs/thing_03.nii.gz").symlink_to("nowhere")
    report = convert("nnunet", source, tmp_path / "root").conversion
    assert report.left_out == ("thing_03",) and "link" in report.problems[0].text()
    assert "thing_04.nii.gz" in report.warnings[0].text()


def test_an_image_without_its_xml_file_is_said_to_follow_yolo(tmp_path: Path) -> None:
    source = make_graz(tmp_path / "graz", patients=5)
    path = next(iter(sorted((source / "folder_structure/pascalvoc").iterdir())))
    path.unlink()
    options = {"settings": {"negatives": "all"}}
    report = convert("grazpedwri", source, tmp_path / "root", **options).conversion
    assert any("pascalvoc" in warning.text() and path.stem in warning.text() for warning in report.warnings)
