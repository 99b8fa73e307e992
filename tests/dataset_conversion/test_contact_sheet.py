"""The contact sheet shows what it must, and a picture shows a box or label where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_conversion.contact_sheet import SHEET_FILE, choose_cases, make_contact_sheet
from dataset_conversion.report import ConversionReport
from dataset_conversion.thumbnails import colour, radiograph_picture, volume_picture
from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import CaseFiles, DatasetDescription
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.io.checks import Finding
from medkd.io.radiographs import write_png
from medkd.io.volumes import write_volume


def report(warned: tuple[str, ...] = (), **lists: tuple[str, ...]) -> ConversionReport:
    warnings = tuple(Finding(case=case, file="f", expected="a", found="b", action="c", error=False) for case in warned)
    return ConversionReport(
        dataset="Dataset001_A",
        format="coco",
        source="s",
        converted=(),
        unchanged=(),
        left_out=(),
        problems=(),
        warnings=warnings,
        notes=(),
        lists=lists,
    )


def cases(count: int) -> dict[str, CaseFiles]:
    return {f"c{i:02d}": CaseFiles(f"c{i:02d}", ()) for i in range(count)}


def test_every_warned_case_and_a_few_others_are_shown_once() -> None:
    made = report(("c07", "c01", "c07", "gone"), rotated=("c03", "c01"), duplicates=("c10 = c11",))
    sections = choose_cases(
        cases(40), made, [Finding(case="c20", file="f", expected="a", found="b", action="c")], 30, {"c01", "c30"}
    )
    shown = {section.title: section.cases for section in sections}
    assert shown["rotated"] == ("c03", "c01"), "images with a box come first"
    assert shown["duplicates"] == ("c10", "c11") and shown["warnings"] == ("c07", "c20")
    assert len(shown["examples"]) == 6 and shown["negatives"] == ("c30",)
    everything = [case for section in sections for case in section.cases]
    assert len(everything) == len(set(everything))


def test_what_does_not_fit_is_counted() -> None:
    sections = choose_cases(cases(40), report(tuple(f"c{i:02d}" for i in range(20))), [], 5)
    assert len(sections[0].cases) == 5 and sections[0].hidden == 15
    assert len(sections[1].cases) == 6


def near(picture: Image.Image, shade: tuple[int, int, int]) -> np.ndarray:
    """Row and column of every pixel of this colour."""
    return np.argwhere(np.abs(np.asarray(picture).astype(int) - shade).max(-1) < 12)


def test_a_box_is_drawn_around_what_it_names(tmp_path: Path) -> None:
    pixels = np.full((100, 200), 60, np.uint8)
    pixels[40:80, 60:140] = 255
    write_png(tmp_path / "a.png", pixels)
    BoxAnnotation(width=200, height=100, boxes=((60, 40, 140, 80),), names=("a",)).save(tmp_path / "a.json")
    picture = radiograph_picture(tmp_path / "a.png", tmp_path / "a.json", ("a",), 200)
    assert picture.size == (200, 200)
    found = near(picture, colour(0))
    assert found.min(0).tolist() == [88, 58] and found.max(0).tolist() == [
        132,
        142,
    ]  # 50 px of black above, the frame is 2 px wide
    inside = np.asarray(picture)[92:128, 64:136]
    assert inside.min() > 230, "the frame must not cover the finding"


@pytest.mark.parametrize("place", [(20, 20), (180, 20), (20, 180), (180, 180)])
def test_a_small_box_is_enlarged_in_the_corner_farthest_from_it(tmp_path: Path, place: tuple[int, int]) -> None:
    x, y = place
    pixels = np.full((200, 200), 60, np.uint8)
    pixels[y - 4 : y + 4, x - 4 : x + 4] = 255
    write_png(tmp_path / "a.png", pixels)
    BoxAnnotation(width=200, height=200, boxes=((x - 4, y - 4, x + 4, y + 4),), names=("a",)).save(tmp_path / "a.json")
    picture = np.asarray(radiograph_picture(tmp_path / "a.png", tmp_path / "a.json", ("a",), 200))
    row, column = (164 if y < 100 else 36), (164 if x < 100 else 36)
    assert picture[row - 10 : row + 10, column - 10 : column + 10].min() > 230, "the enlarged patch"
    assert picture[y - 2 : y + 2, x - 2 : x + 2].min() > 150


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_a_volume_is_shown_as_radiologists_look_at_it(tmp_path: Path, flip: tuple[int, int, int]) -> None:
    """A label at the patient's right front lies at the upper left, whatever the order of the voxels."""
    array = np.random.default_rng(0).normal(size=(8, 40, 40)).astype(np.float32)
    label = np.zeros(array.shape, np.uint8)
    label[5, 30:36, 30:36] = 1  # RAS+ grid: large x is right, large y is front
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    steps = tuple(flip)
    turned = tuple(np.ascontiguousarray(a[:: steps[2], :: steps[1], :: steps[0]]) for a in (array, label))
    for axis in range(3):
        if flip[axis] < 0:
            affine[axis, 3] = (array.shape[2 - axis] - 1) * affine[axis, axis]
            affine[axis, axis] *= -1
    grid = Geometry.from_affine(array.shape, affine)
    write_volume(tmp_path / "i.nii.gz", turned[0], grid)
    write_volume(tmp_path / "l.nii.gz", turned[1], grid)
    picture = np.asarray(volume_picture(CaseFiles("c", (tmp_path / "i.nii.gz",), tmp_path / "l.nii.gz"), 80)).astype(
        int
    )
    rows, columns = np.nonzero(picture[..., 0] - picture[..., 2] > 60)
    assert rows.size and rows.max() < 24 and columns.max() < 24


def test_a_sheet_is_made_for_both_kinds_of_data_sets(tmp_path: Path) -> None:
    boxes, volumes = tmp_path / "Dataset001_A", tmp_path / "Dataset002_B"
    for i in range(3):
        write_png(boxes / f"imagesTr/c{i}_0000.png", np.full((30, 50), 90, np.uint8))
        BoxAnnotation(width=50, height=30, boxes=((1, 2, 9, 9),), names=("fracture",)).save(
            boxes / f"labelsTr/c{i}.json"
        )
        grid = Geometry.from_spacing((3, 9, 9), (1.0, 1.0, 1.0))
        write_volume(volumes / f"imagesTr/c{i}_0000.nii.gz", np.zeros((3, 9, 9), np.float32), grid)
        write_volume(volumes / f"labelsTr/c{i}.nii.gz", np.ones((3, 9, 9), np.uint8), grid)
    (boxes / "imagesTr/c1_0000.png").write_bytes(b"damaged since")
    DatasetDescription.detection(("X-ray",), ("fracture",), num_training=3, file_ending=".png").save(
        boxes / "dataset.json"
    )
    DatasetDescription(channel_names=("CT",), labels=LabelSpec.from_names(["liver"]), num_training=3).save(
        volumes / "dataset.json"
    )
    for folder in (boxes, volumes):
        assert make_contact_sheet(folder, report(("c1",))) == folder / SHEET_FILE
        with Image.open(folder / SHEET_FILE) as sheet:
            assert sheet.width > 800 and sheet.height > 600
