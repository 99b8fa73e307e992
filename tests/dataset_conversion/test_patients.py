"""The table of ``--patients``: every row finds its image, or says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataset_conversion import ConversionOptions
from dataset_conversion.patients import read_patients
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.io.radiographs import write_png
from tests.dataset_conversion.own_trees import box, convert, make, number_of
from tests.dataset_conversion.radiograph_trees import HEIGHT, WIDTH, Box, picture, write_coco


def test_patients_from_a_table_stay_together(tmp_path: Path) -> None:
    source = make("voc", tmp_path / "own")
    (tmp_path / "p.csv").write_text("image,patient\n" + "\n".join(f"x{n}.jpg,p{n // 2}" for n in range(9)))
    folder = convert("voc", source, tmp_path / "root", patients=str(tmp_path / "p.csv")).folder
    assert DatasetDescription.load(folder / "dataset.json").patients["x3"] == "p1"
    for fold in json.loads((folder / "splits_final.json").read_text()):
        assert not {number_of(c) // 2 for c in fold["train"]} & {number_of(c) // 2 for c in fold["val"]}


def patient_folders(source: Path) -> Path:
    """Six patients, a folder each, with three images whose names are the same in all folders."""
    images: dict[str, tuple[int, int, list[tuple[int, Box]]]] = {}
    for n in range(18):
        name = f"P{n // 3}/img{n % 3}.png"
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(source / name, picture(n))
        images[name] = (WIDTH, HEIGHT, [(0, box(n % 5))])
    write_coco(source / "a.json", images, {0: "fracture"})
    return source


@pytest.mark.parametrize("form", ["{0}/{1}.png", "{0}/{1}", "/old/disk/{0}/{1}.png", "{0}\\{1}.png"])
def test_patients_are_told_apart_by_folders_where_file_names_are_equal(tmp_path: Path, form: str) -> None:
    source = patient_folders(tmp_path / "own")
    rows = [f"{form.format(f'P{n // 3}', f'img{n % 3}')},person {n // 3}" for n in range(18)]
    (tmp_path / "p.csv").write_text("\n".join(["image,patient", *rows, "P9/img0.png,person 9"]))
    result = convert("coco", source, tmp_path / "root", patients=str(tmp_path / "p.csv"))
    patients = DatasetDescription.load(result.folder / "dataset.json").patients
    assert patients == {f"P{p}_img{k}": f"person {p}" for p in range(6) for k in range(3)}
    for fold in json.loads((result.folder / "splits_final.json").read_text()):
        assert fold["val"] and not {patients[c] for c in fold["train"]} & {patients[c] for c in fold["val"]}


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ("img0.png,A", "is there 6 times"),
        ("P0/img0.png,A\nP0/img0,B", "found 'A' and 'B'"),
        ("scan7.png,A", "no row names one"),
        ("P0/img0.png,", "no row names one"),
    ],
)
def test_a_table_of_patients_that_decides_nothing_is_refused(tmp_path: Path, rows: str, text: str) -> None:
    (tmp_path / "p.csv").write_text(f"image,patient\n{rows}\n")
    with pytest.raises(DataError, match=text) as error:
        convert("coco", patient_folders(tmp_path / "own"), tmp_path / "root", patients=str(tmp_path / "p.csv"))
    assert "p.csv" in str(error.value) and not (tmp_path / "root").exists()


def test_the_folder_of_a_row_decides_before_its_name_alone(tmp_path: Path) -> None:
    """The row of an image that was removed must not give its patient to the image of another one."""
    images = [tmp_path / name for name in ("P1/img0.png", "P2/only.png")]
    (tmp_path / "p.csv").write_text("image,patient\nP0/img0.png,A\nP1/img0.png,B\nold/only.jpg,C\n")
    options = ConversionOptions(settings={"patients": str(tmp_path / "p.csv")})
    assert read_patients(options, images, tmp_path) == ({images[0]: "B", images[1]: "C"}, [])


@pytest.mark.parametrize(("rows", "problem"), [(range(9), False), (range(8), True)])
def test_rows_of_no_image_are_named(tmp_path: Path, rows: range, problem: bool) -> None:
    """Where an image has no patient, the row that names nothing may be its own."""
    source = make("voc", tmp_path / "own")
    lines = [f"IMAGES\\X{n}.JPG,p{n}" for n in rows]
    (tmp_path / "p.csv").write_text("\n".join(["image,patient", *lines, "y8.jpg,p8"]))
    report = convert("voc", source, tmp_path / "root", patients=str(tmp_path / "p.csv")).conversion
    (finding,) = report.problems if problem else report.warnings
    assert "'y8.jpg'" in finding.text() and "p.csv" in finding.text() and ("x8.jpg" in finding.text()) == problem
