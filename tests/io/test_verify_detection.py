"""Checking a detection data set: every planted defect is named, and a sound one has none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.io.radiographs import write_png
from medkd.io.verify import Report, verify_dataset


def make(folder: Path, cases: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for i in range(cases):
        write_png(folder / f"imagesTr/c{i}_0000.png", rng.integers(0, 256, (20, 30), dtype=np.uint8))
        BoxAnnotation(width=30, height=20, boxes=((1, 2, 10, 12),), names=("fracture",)).save(
            folder / f"labelsTr/c{i}.json"
        )
    DatasetDescription.detection(("X-ray",), ("fracture",), num_training=cases, file_ending=".png").save(
        folder / "dataset.json"
    )
    return folder


def test_a_sound_data_set_has_no_findings(tmp_path: Path) -> None:
    report = verify_dataset(make(tmp_path))
    assert report.ok and not report.warnings and report.good_cases == ("c0", "c1", "c2")


def break_it(folder: Path, kind: str) -> None:
    image, label = folder / "imagesTr/c1_0000.png", folder / "labelsTr/c1.json"
    box = {"out": (1, 2, 31, 12), "area": (4, 4, 4, 9)}.get(kind, (1, 2, 10, 12))
    if kind in ("out", "area"):
        BoxAnnotation(width=30, height=20, boxes=(box,), names=("fracture",)).save(label)
    elif kind == "class":
        BoxAnnotation(width=30, height=20, boxes=(box,), names=("metal",)).save(label)
    elif kind == "size":
        BoxAnnotation(width=20, height=30, boxes=(box,), names=("fracture",)).save(label)
    elif kind == "form":
        label.write_text(json.dumps({"boxes": []}))
    elif kind == "unreadable":
        image.write_bytes(b"no")
    elif kind == "missing":
        image.unlink()
    elif kind == "wide":
        Image.fromarray(np.full((20, 30), 4000, np.uint16)).save(image)


TEXTS = {
    "out": "outside of the image",
    "area": "no area",
    "class": "boxes of 'metal'",
    "size": "20×30",
    "form": "'width' is missing",
    "unreadable": "no image",
    "missing": "No such file",
    "wide": "uint16",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_defect_is_named_with_its_case(tmp_path: Path, kind: str) -> None:
    break_it(make(tmp_path), kind)
    report = verify_dataset(tmp_path)
    assert not report.ok and report.bad_cases == ("c1",) and report.good_cases == ("c0", "c2")
    assert TEXTS[kind] in report.text()
    assert {finding.case for finding in report.problems} == {"c1"}


def test_a_rotated_jpeg_is_refused_since_readers_disagree(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "imagesTr/c1_0000.png").unlink()
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(tmp_path / "imagesTr/c1_0000.jpg", exif=exif)
    report = verify_dataset(tmp_path)
    assert report.bad_cases == ("c1",) and "EXIF orientation 6" in report.text()


def warn(report: Report) -> str:
    assert report.ok
    return "\n".join(finding.text() for finding in report.warnings)


def test_duplicates_equal_boxes_and_unused_categories_are_warnings(tmp_path: Path) -> None:
    make(tmp_path)
    image = (tmp_path / "imagesTr/c0_0000.png").read_bytes()
    (tmp_path / "imagesTr/c2_0000.png").write_bytes(image)
    BoxAnnotation(width=30, height=20, boxes=((1, 2, 10, 12),) * 2, names=("fracture",) * 2).save(
        tmp_path / "labelsTr/c1.json"
    )
    DatasetDescription.detection(("X-ray",), ("fracture", "metal"), num_training=3, file_ending=".png").save(
        tmp_path / "dataset.json"
    )
    text = warn(verify_dataset(tmp_path))
    assert "the same pixels in c0, c2" in text and "2 times" in text and "no box of metal" in text


def test_images_without_annotation_and_a_wrong_count_are_problems(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "labelsTr/c2.json").unlink()
    report = verify_dataset(tmp_path)
    assert not report.ok and "c2_0000.png" in report.text() and "2 annotations" in report.text()


def test_test_cases_are_checked_too(tmp_path: Path) -> None:
    make(tmp_path)
    write_png(tmp_path / "imagesTs/t_0000.png", np.zeros((20, 30), np.uint8))
    BoxAnnotation(width=31, height=20).save(tmp_path / "labelsTs/t.json")
    report = verify_dataset(tmp_path)
    assert not report.ok and report.problems[0].case == "t" and len(report.good_cases) == 3


def test_a_picture_of_nothing_and_categories_that_are_probably_one_are_warnings(tmp_path: Path) -> None:
    folder = make(tmp_path)
    write_png(folder / "imagesTr/c1_0000.png", np.full((20, 30), 7, np.uint8))
    categories = ("fracture", "Fracture ", "other")
    DatasetDescription.detection(("X-ray",), categories, num_training=3, file_ending=".png").save(
        folder / "dataset.json"
    )
    report = verify_dataset(folder)
    texts = [finding.text() for finding in report.warnings]
    assert report.ok
    assert any("case c1" in text and "found the value 7 in all pixels" in text for text in texts)
    assert any("'fracture' and 'Fracture '" in text for text in texts)


@pytest.mark.parametrize("name", ["background", "Background", " IGNORE ", ""])
def test_a_category_cannot_be_called_so(name: str) -> None:
    with pytest.raises(DataError, match="none called background"):
        DatasetDescription.detection(("X-ray",), ("fracture", name))
