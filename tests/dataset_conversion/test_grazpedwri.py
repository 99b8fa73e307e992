"""GRAZPEDWRI-DX: an imitation of the download with its traps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_conversion import ConversionOptions, convert_dataset
from dataset_conversion.convert import Converted
from dataset_conversion.grazpedwri import CLASSES, parse_stem
from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.io.radiographs import read_radiograph
from tests.dataset_conversion.radiograph_trees import GRAZ_BOXES, graz_stem, make_graz, picture, write_voc, write_yolo


def convert(source: Path, root: Path, labels: tuple[str, ...] = (), **settings: str) -> Converted:
    return convert_dataset(
        "grazpedwri", source, 501, root=root, options=ConversionOptions(labels=labels, settings=settings)
    )


def annotation(folder: Path, stem: str) -> BoxAnnotation:
    return BoxAnnotation.load(folder / f"labelsTr/{stem}.json")


def test_classes_go_by_name_and_patients_are_recorded(tmp_path: Path) -> None:
    result = convert(make_graz(tmp_path / "graz"), tmp_path / "root")
    assert result.ok and len(result.conversion.converted) == 16 and not result.conversion.warnings
    description = DatasetDescription.load(result.folder / "dataset.json")
    assert description.categories == CLASSES and description.file_ending == ".png"
    assert description.patients[graz_stem(3, 1, 2)] == "0003" and len(set(description.patients.values())) == 8
    found = annotation(result.folder, graz_stem(1, 1, 1))
    assert set(found.names) == {"text", "fracture", "metal"}
    assert dict(zip(found.names, found.boxes, strict=True)) == GRAZ_BOXES
    assert "empty cells in dataset.csv" in result.conversion.notes[0] and "cast 100.0%" in result.conversion.notes[0]


def test_sixteen_bits_become_eight_without_crushing_and_the_window_is_recorded(tmp_path: Path) -> None:
    """12 bits of anatomy with one pixel at 65535: by the high byte nothing would be brighter than 15."""
    result = convert(make_graz(tmp_path / "graz"), tmp_path / "root")
    stem = graz_stem(1, 1, 1)
    found = read_radiograph(result.folder / f"imagesTr/{stem}_0000.png")
    original = picture(3, box=GRAZ_BOXES["fracture"]).astype(float)
    assert found.plain and found.pixels.max() == 255
    assert np.corrcoef(found.pixels.reshape(-1)[1:], original.reshape(-1)[1:])[0, 1] > 0.98
    assert len(np.unique(found.pixels)) > 0.8 * len(np.unique(original))
    low, high = annotation(result.folder, stem).window or (0, 0)
    assert 200 < low < 500 and 3000 < high <= 65535
    assert len(result.conversion.lists["16 bit"]) == 16


def test_folds_keep_patients_together_and_spread_the_fractures(tmp_path: Path) -> None:
    result = convert(make_graz(tmp_path / "graz", patients=20), tmp_path / "root")
    folds = json.loads((result.folder / "splits_final.json").read_text())
    assert len(folds) == 5
    for fold in folds:
        assert not {c[:4] for c in fold["train"]} & {c[:4] for c in fold["val"]}
        with_fracture = sum("fracture" in annotation(result.folder, c).names for c in fold["val"])
        assert 2 <= with_fracture <= 6
    assert sorted(c for fold in folds for c in fold["val"]) == list(result.conversion.converted)
    assert "stratified by class" in json.loads((result.folder / "dataset.json").read_text())["medkd"]["split_source"]


def test_labels_choose_and_order_the_classes(tmp_path: Path) -> None:
    result = convert(make_graz(tmp_path / "graz"), tmp_path / "root", labels=("text", "fracture"))
    assert DatasetDescription.load(result.folder / "dataset.json").categories == ("text", "fracture")
    assert set(annotation(result.folder, graz_stem(1, 1, 1)).names) == {"text", "fracture"}
    assert any("metal" in note for note in result.conversion.notes)
    with pytest.raises(DataError, match="fractur'"):
        convert(make_graz(tmp_path / "other"), tmp_path / "root2", labels=("fractur",))


def test_a_yolo_file_counted_in_another_order_is_noticed_and_not_believed(tmp_path: Path) -> None:
    source, stem = make_graz(tmp_path / "graz"), graz_stem(2, 1, 1)
    write_yolo(source / f"folder_structure/yolov5/labels/{stem}.txt", [(7, GRAZ_BOXES["text"])])
    result = convert(source, tmp_path / "root")
    assert annotation(result.folder, stem).names == ("text",)
    (warning,) = result.conversion.warnings
    assert warning.case == stem and "softtissue instead of text" in warning.found


def test_yolo_alone_is_enough_and_a_missing_file_is_a_negative(tmp_path: Path) -> None:
    source, stem = make_graz(tmp_path / "graz"), graz_stem(2, 1, 1)
    shutil.rmtree(source / "folder_structure/pascalvoc")
    (source / f"folder_structure/yolov5/labels/{stem}.txt").unlink()
    (source / "folder_structure/yolov5/meta.yaml").write_text("names: [" + ", ".join(CLASSES) + "]\nnc: 9\n")
    result = convert(source, tmp_path / "root")
    assert result.ok and result.conversion.lists["negative"] == (stem,)
    np.testing.assert_allclose(annotation(result.folder, graz_stem(4, 1, 1)).array()[0], GRAZ_BOXES["text"], atol=0.01)


def test_absent_and_unlisted_and_unreadable_files_are_named_and_the_rest_is_converted(tmp_path: Path) -> None:
    source = make_graz(tmp_path / "graz")
    files = {p.stem: p for p in source.glob("images_part*/*.png")}
    gone, broken, bare, stranger = graz_stem(1, 1, 1), graz_stem(2, 1, 1), graz_stem(3, 1, 1), "scan17"
    files[gone].unlink()
    files[broken].write_bytes(files[broken].read_bytes()[:200])
    (source / f"folder_structure/pascalvoc/{bare}.xml").unlink()
    (source / f"folder_structure/yolov5/labels/{bare}.txt").unlink()
    shutil.copy(files[graz_stem(4, 1, 1)], source / f"images_part1/{stranger}.png")
    write_voc(source / f"folder_structure/pascalvoc/{stranger}.xml", "x", [])
    new = graz_stem(4, 2, 1)
    Image.fromarray(picture(99).astype(np.uint16) * 16).save(source / f"images_part2/{new}.png")
    write_voc(source / f"folder_structure/pascalvoc/{new}.xml", "x", [])
    result = convert(source, tmp_path / "root")
    assert not result.ok and result.verification.ok
    assert set(result.conversion.left_out) == {gone, broken, bare, stranger}
    assert result.conversion.lists["absent"] == (gone,)
    assert new in result.conversion.converted and len(result.conversion.converted) == 14
    assert DatasetDescription.load(result.folder / "dataset.json").patients[new] == "0004"


def test_an_image_in_two_parts_is_used_once(tmp_path: Path) -> None:
    source = make_graz(tmp_path / "graz")
    path = sorted(source.glob("images_part1/*.png"))[0]
    shutil.copy(path, source / f"images_part3/{path.name}")
    result = convert(source, tmp_path / "root")
    assert result.ok and [f.case for f in result.conversion.warnings] == [path.stem]


def test_published_split_files_are_fold_0_and_test(tmp_path: Path) -> None:
    source, splits = make_graz(tmp_path / "graz"), tmp_path / "splits"
    splits.mkdir()
    for name, patients in {"train": (1, 2, 3, 4, 5), "valid": (6, 7), "test": (8,)}.items():
        stems = [graz_stem(p, 1, projection) for p in patients for projection in (1, 2)]
        (splits / f"{name}_data.csv").write_text("\n".join(["filestem,patient_id", *(f"{s},1" for s in stems)]))
    result = convert(source, tmp_path / "root", split=str(splits))
    (fold,) = json.loads((result.folder / "splits_final.json").read_text())
    assert len(fold["train"]) == 10 and fold["val"] == [graz_stem(p, 1, i) for p in (6, 7) for i in (1, 2)]
    assert {p.stem for p in (result.folder / "labelsTs").glob("*")} == {graz_stem(8, 1, 1), graz_stem(8, 1, 2)}


def test_a_split_by_images_loses_the_training_images_of_held_out_patients(tmp_path: Path) -> None:
    source, splits = make_graz(tmp_path / "graz"), tmp_path / "splits"
    splits.mkdir()
    parts = {
        "train": [graz_stem(p, 1, 1) for p in range(1, 7)],
        "valid": [graz_stem(1, 1, 2)],
        "test": [graz_stem(2, 1, 2)],
    }
    for name, stems in parts.items():
        (splits / f"{name}_data.csv").write_text("\n".join(["filestem", *stems]))
    result = convert(source, tmp_path / "root", split=str(splits))
    (fold,) = json.loads((result.folder / "splits_final.json").read_text())
    assert fold == {"train": [graz_stem(p, 1, 1) for p in range(3, 7)], "val": parts["valid"]}
    assert any("2 images of 2 patients (0001, 0002)" in note for note in result.conversion.notes)


def test_stems_are_parsed() -> None:
    found = parse_stem("0038_0775938745_03_WRI-L2_M014")
    assert found == {
        "patient": "0038",
        "time": "0775938745",
        "study": "03",
        "side": "L",
        "projection": "2",
        "sex": "M",
        "age": "014",
    }
    assert parse_stem("0038_0775938745_03_WRI-X2_M014") is None


@pytest.mark.parametrize(
    ("missing", "text"), [("dataset.csv", "expected dataset.csv"), ("folder_structure", "neither"), ("images", "PNG")]
)
def test_an_incomplete_download_is_refused_with_a_reason(tmp_path: Path, missing: str, text: str) -> None:
    source = make_graz(tmp_path / "graz")
    for path in list(source.iterdir()):
        if path.name.startswith(missing):
            path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(DataError, match=text):
        convert(source, tmp_path / "root")
