"""FracAtlas: an imitation with every known defect, and the real thing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_conversion import ConversionOptions, convert_dataset
from dataset_conversion.convert import Converted
from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import DatasetDescription, training_cases
from medkd.core.errors import DataError
from medkd.io.radiographs import read_radiograph
from tests.dataset_conversion.radiograph_trees import FRACTURES, make_fracatlas, save_jpeg, tree, write_voc, write_yolo


def convert(source: Path, root: Path, mode: str = "copy", **settings: str) -> Converted:
    options = ConversionOptions(mode=mode, settings=settings)  # type: ignore[arg-type]
    return convert_dataset("fracatlas", source, 502, root=root, options=options)


def case(number: int) -> str:
    return f"IMG{number:07d}"


def boxes(folder: Path, number: int, split: str = "Tr") -> BoxAnnotation:
    return BoxAnnotation.load(folder / f"labels{split}/{case(number)}.json")


def test_every_planted_defect_is_reported_and_nothing_else(tmp_path: Path) -> None:
    source = make_fracatlas(tmp_path)
    before = tree(source)
    result = convert(source, tmp_path / "root")
    report = result.conversion
    assert not result.ok and result.verification.ok
    assert report.lists["rotated"] == (case(1), case(11))
    assert report.lists["truncated"] == (case(12),)
    assert report.lists["duplicates"] == (f"{case(2)} = {case(3)}",)
    assert report.lists["absent, with boxes"] == ("IMG0000004.jpg",)
    assert report.lists["absent, without boxes"] == ("IMG0000013.jpg",)
    assert report.lists["negative"] == tuple(case(i) for i in range(8, 13))
    assert set(report.lists) == {
        "rotated",
        "truncated",
        "duplicates",
        "absent, with boxes",
        "absent, without boxes",
        "negative",
    }
    assert report.left_out == (case(4),)
    assert [f.case for f in report.problems] == ["", case(4)]
    assert sorted(f.case for f in report.warnings) == [case(2), case(7), case(12)]
    assert "fractured 0" in next(f.text() for f in report.warnings if f.case == case(7))
    assert tree(source) == before, "the source must not change"
    assert (result.folder / "contact_sheet.png").exists()


def test_a_turned_image_is_upright_and_its_box_sits_on_the_bright_patch(tmp_path: Path) -> None:
    folder = convert(make_fracatlas(tmp_path), tmp_path / "root").folder
    annotation = boxes(folder, 1)
    image = read_radiograph(folder / f"imagesTr/{case(1)}_0000.png")
    assert image.plain and image.size == (annotation.width, annotation.height) == (40, 60)
    left, top, right, bottom = (round(v) for v in annotation.boxes[0])
    assert image.pixels[top + 1 : bottom - 2, left + 1 : right - 1].min() > 200
    outside = image.pixels.copy()
    outside[top - 2 : bottom + 2, left - 2 : right + 2] = 0
    assert outside.max() < 200


def test_jpegs_stay_jpegs_but_for_the_two_turned_and_the_truncated_one(tmp_path: Path) -> None:
    source = make_fracatlas(tmp_path)
    folder = convert(source, tmp_path / "root", mode="link").folder
    pngs = {p.name for p in folder.glob("images*/*.png")}
    assert pngs == {f"{case(i)}_0000.png" for i in (1, 11, 12)}
    for path in folder.glob("images*/*.jpg"):
        assert path.is_symlink() and path.resolve().name == path.name.replace("_0000", "")
    description = DatasetDescription.load(folder / "dataset.json")
    assert description.file_ending == ".jpg" and description.categories == ("fractured",)
    assert all(files.images[0].exists() for files in training_cases(folder, description))
    upright = np.asarray(Image.open(source / f"images/Non_fractured/{case(11)}.jpg"))[::-1, ::-1]
    np.testing.assert_array_equal(read_radiograph(folder / f"imagesTr/{case(11)}_0000.png").pixels, upright)


def test_the_official_split_is_fold_0_and_the_test_images_are_set_aside(tmp_path: Path) -> None:
    folder = convert(make_fracatlas(tmp_path), tmp_path / "root").folder
    (fold,) = json.loads((folder / "splits_final.json").read_text())
    assert fold["val"] == [case(5), case(6)]
    assert fold["train"] == [case(i) for i in (0, 1, 2, 3, 8, 9, 10, 11, 12)]
    assert {p.stem for p in (folder / "labelsTs").glob("*.json")} == {case(7)}
    own = json.loads((folder / "dataset.json").read_text())["medkd"]
    assert "official train.csv, valid.csv and test.csv" in own["split_source"] and "5 / 2 / 1" in own["split_source"]
    assert own["duplicates"] == [[case(2), case(3)]] and own["format"] == "fracatlas"


def test_a_training_image_that_equals_a_validation_image_is_taken_out_of_training(tmp_path: Path) -> None:
    source = make_fracatlas(tmp_path)
    path = source / f"images/Non_fractured/{case(9)}.jpg"
    path.write_bytes((source / f"images/Fractured/{case(5)}.jpg").read_bytes())
    result = convert(source, tmp_path / "root")
    (fold,) = json.loads((result.folder / "splits_final.json").read_text())
    assert case(9) not in fold["train"] and case(5) in fold["val"]
    assert any(case(9) in note for note in result.conversion.notes)


@pytest.mark.parametrize(
    ("negatives", "expected"), [("none", []), ("2", [8, 10]), ("all", [8, 9, 10, 11, 12]), ("99", [8, 9, 10, 11, 12])]
)
def test_the_user_says_how_many_negatives(tmp_path: Path, negatives: str, expected: list[int]) -> None:
    result = convert(make_fracatlas(tmp_path), tmp_path / "root", negatives=negatives)
    assert result.conversion.lists.get("negative", ()) == tuple(case(i) for i in expected)
    assert all(boxes(result.folder, i).boxes == () for i in expected)
    assert any("without fracture" in f.expected for f in result.conversion.problems) == (negatives == "all")


def test_fewer_negatives_the_second_time_take_the_others_away(tmp_path: Path) -> None:
    source = make_fracatlas(tmp_path)
    convert(source, tmp_path / "root")
    (tmp_path / "root/raw/Dataset502_FracAtlas/splits_final.json").unlink()
    result = convert(source, tmp_path / "root", negatives="none")
    assert result.verification.ok and not result.conversion.converted
    assert not list(result.folder.glob(f"*Tr/{case(8)}*"))


def test_five_folds_keep_equal_images_together(tmp_path: Path) -> None:
    folder = convert(make_fracatlas(tmp_path), tmp_path / "root", folds="five").folder
    folds = json.loads((folder / "splits_final.json").read_text())
    assert len(folds) == 5
    assert sorted(c for fold in folds for c in fold["val"]) == sorted(
        p.stem for p in (folder / "labelsTr").glob("*.json")
    )
    assert all((case(2) in fold["val"]) == (case(3) in fold["val"]) for fold in folds)
    assert case(7) not in folds[0]["train"] + folds[0]["val"]


def test_annotations_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    source = make_fracatlas(tmp_path)
    write_yolo(source / f"Annotations/YOLO/{case(0)}.txt", [(0, (30, 8, 42, 21))])
    write_voc(source / f"Annotations/PASCAL VOC/{case(5)}.xml", "x", [])
    write_voc(source / f"Annotations/PASCAL VOC/{case(8)}.xml", "x", [("fractured", (1, 1, 9, 9))])
    result = convert(source, tmp_path / "root")
    found = {
        f.case: f.found for f in result.conversion.warnings if "COCO" in f.action and f.file.endswith(("txt", "xml"))
    }
    assert found.keys() == {case(0), case(5), case(8)}
    assert (
        "px away" in found[case(0)]
        and "0 boxes instead of 1" in found[case(5)]
        and "1 boxes instead of 0" in found[case(8)]
    )
    assert boxes(result.folder, 0).boxes[0] == tuple(round(v, 3) for v in FRACTURES[f"{case(0)}.jpg"][2][0][1])


def test_a_fractured_image_without_boxes_or_of_another_size_is_left_out(tmp_path: Path) -> None:
    source = make_fracatlas(tmp_path)
    save_jpeg(source / "images/Fractured/IMG0000099.jpg", np.zeros((9, 9), np.uint8))
    save_jpeg(source / f"images/Fractured/{case(0)}.jpg", np.zeros((41, 60), np.uint8))
    report = convert(source, tmp_path / "root").conversion
    assert report.left_out == (case(0), case(4), "IMG0000099")


def test_running_again_changes_nothing(tmp_path: Path) -> None:
    source = make_fracatlas(tmp_path)
    first = convert(source, tmp_path / "root")
    before = {k: v for k, v in tree(first.folder).items() if k.startswith(("images", "labels"))}
    again = convert(source, tmp_path / "root")
    assert again.conversion.converted == () and len(again.conversion.unchanged) == len(first.conversion.converted)
    assert {k: v for k, v in tree(first.folder).items() if k.startswith(("images", "labels"))} == before
    assert again.conversion.lists == first.conversion.lists
    assert again.conversion.warnings == first.conversion.warnings


def test_another_layout_is_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match="images and Annotations"):
        convert(tmp_path / "x", tmp_path / "root")
    source = make_fracatlas(tmp_path)
    for setting, text in (
        ({"negatives": "some"}, "--negatives"),
        ({"folds": "six"}, "--folds"),
        ({"scaling": "log"}, "--scaling"),
    ):
        with pytest.raises(DataError, match=text):
            convert(source, tmp_path / "root", **setting)  # type: ignore[arg-type]


@pytest.mark.real_data
@pytest.mark.slow
def test_the_real_fracatlas_has_exactly_the_known_defects(real_data: Path, tmp_path: Path) -> None:
    """The list of truncated files and the counts are those of whoever looked through the whole release by other
    means.
    """
    source = real_data / "fracatlas"
    result = convert(source, tmp_path / "root", mode="link")
    lists, folder = result.conversion.lists, result.folder
    on_disk = {p.stem for p in source.glob("images/*/*.jpg")}
    truncated = {Path(name).stem for name in (source / "truncated.txt").read_text().split()}
    assert set(result.conversion.converted) == on_disk and len(on_disk) == 1170 and result.verification.ok
    assert set(lists["truncated"]) == truncated and len(truncated) == 59
    rotated = {p.stem for p in source.glob("images/*/*.jpg") if Image.open(p).getexif().get(274, 1) != 1}
    assert set(lists["rotated"]) == rotated and len(rotated) == 25 and {case(2588), case(2628)} <= rotated
    digests: dict[str, list[str]] = {}
    for path in sorted(source.glob("images/*/*.jpg"), key=lambda p: p.stem):
        if path.stem not in truncated | rotated:  # a truncated one cannot be decoded by Pillow alone
            digests.setdefault(hashlib.md5(np.asarray(Image.open(path)).tobytes()).hexdigest(), []).append(path.stem)
    twins = {" = ".join(group) for group in digests.values() if len(group) > 1} | {f"{case(4308)} = {case(4347)}"}
    assert set(lists["duplicates"]) == twins and len(twins) == 16
    assert f"{case(1763)} = {case(2615)}" in twins, "one of two pairs that are equal byte by byte"
    assert len(lists["absent, with boxes"]) == 72 + 61 and len(lists["absent, without boxes"]) == 2780
    assert len(lists["negative"]) == 586
    assert result.conversion.left_out == tuple(sorted(Path(n).stem for n in lists["absent, with boxes"]))
    description = DatasetDescription.load(folder / "dataset.json")
    assert description.num_training == 1170 and description.patients == {}
    (fold,) = json.loads((folder / "splits_final.json").read_text())
    assert len(fold["val"]) == 82 and len(fold["train"]) == 502 + 586 - 8, (
        "eight training images equal a validation image"
    )
    assert not list(folder.glob("imagesTs/*")), "the test images are not here"
    annotation = boxes(folder, 2628)
    assert (annotation.width, annotation.height) == (454, 373)
    assert read_radiograph(folder / f"imagesTr/{case(2628)}_0000.png").size == (454, 373)
    others = {f.case for f in result.conversion.warnings} - truncated - {d.split(" = ")[0] for d in lists["duplicates"]}
    assert others == {case(3298)}, "dataset.csv denies its fracture, COCO has a box"
