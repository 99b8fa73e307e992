"""Verification of raw data sets: each defect is found, named, and limited to its case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medkd.core.geometry import Geometry
from medkd.core.serial import load
from medkd.io import verify
from medkd.io.checks import label_values
from medkd.io.nifti import write_nifti
from medkd.io.verify import Report, verify_dataset, worker_count
from medkd.io.volumes import read_geometry, read_volume, write_volume

SHAPE = (6, 7, 8)
GRID = Geometry.from_spacing(SHAPE, (3.0, 1.0, 1.0))


def make_dataset(folder: Path, cases: int = 3, channels: int = 2, **keys: object) -> Path:
    """A correct raw data set with labels 0, 1, 2."""
    rng = np.random.default_rng(0)
    for i in range(cases):
        for c in range(channels):
            write_volume(folder / f"imagesTr/c{i}_{c:04d}.nii.gz", rng.normal(size=SHAPE).astype(np.float32), GRID)
        label = rng.integers(0, 3, SHAPE).astype(np.uint8)
        write_volume(folder / f"labelsTr/c{i}.nii.gz", label, GRID)
    description = {
        "channel_names": {str(c): f"m{c}" for c in range(channels)},
        "labels": {"background": 0, "a": 1, "b": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        **keys,
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def image(folder: Path, name: str) -> np.ndarray:
    return read_volume(folder / name).array


def test_a_correct_dataset_has_no_findings(tmp_path: Path) -> None:
    report = verify_dataset(make_dataset(tmp_path / "D"))
    assert report.ok and not report.warnings and report.good_cases == ("c0", "c1", "c2") and report.bad_cases == ()


def spoil(folder: Path, kind: str) -> None:
    """Damage case c1 in one way."""
    first, second, label = (
        folder / "imagesTr/c1_0000.nii.gz",
        folder / "imagesTr/c1_0001.nii.gz",
        folder / "labelsTr/c1.nii.gz",
    )
    moved = GRID.matrix
    if kind == "truncated":
        second.write_bytes(second.read_bytes()[:300])
    elif kind == "nan":
        array = image(folder, "imagesTr/c1_0000.nii.gz")
        array[0, 0, :5] = np.nan
        write_volume(first, array, GRID)
    elif kind == "missing channel":
        second.unlink()
    elif kind == "label size":
        write_volume(label, np.zeros((6, 7, 9), np.uint8), Geometry.from_spacing((6, 7, 9), GRID.spacing))
    elif kind == "label value":
        write_volume(label, np.full(SHAPE, 7, np.uint8), GRID)
    elif kind == "spacing":
        write_volume(second, image(folder, "imagesTr/c1_0001.nii.gz"), Geometry.from_spacing(SHAPE, (3.0, 1.1, 1.0)))
    elif kind == "shifted label":
        moved[:3, 3] += 20
        write_volume(label, np.zeros(SHAPE, np.uint8), Geometry.from_affine(SHAPE, moved))
    elif kind == "fractional label":
        write_volume(label, np.full(SHAPE, 0.5, np.float32), GRID)


@pytest.mark.parametrize(
    "kind, text",
    [
        ("truncated", "c1_0001.nii.gz is truncated or damaged"),
        ("nan", "5 NaN and 0 infinite"),
        ("missing channel", "c1_0001.nii.gz, but it does not exist"),
        ("label size", "shape 6×7×9"),
        ("label value", "also 7"),
        ("spacing", "spacing 3 × 1.1 × 1 mm"),
        ("shifted label", "same origin as c1_0000"),
        ("fractional label", "whole numbers, found 0.5"),
    ],
)
def test_one_bad_case_is_named_and_the_others_are_good(tmp_path: Path, kind: str, text: str) -> None:
    folder = make_dataset(tmp_path / "D")
    spoil(folder, kind)
    report = verify_dataset(folder)
    assert report.good_cases == ("c0", "c2") and report.bad_cases == ("c1",)
    assert [f.case for f in report.problems] == ["c1"]
    assert text in report.problems[0].text()
    assert report.problems[0].action in report.text()


def test_all_problems_of_all_cases_are_listed(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "D")
    for kind in ("nan", "truncated", "label value"):
        spoil(folder, kind)
    (folder / "labelsTr/c0.nii.gz").write_bytes(b"")
    report = verify_dataset(folder)
    assert [f.case for f in report.problems] == ["c0", "c1", "c1", "c1"]
    assert report.good_cases == ("c2",)


def test_a_slightly_different_origin_is_a_warning(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "D")
    moved = GRID.matrix
    moved[0, 3] += 0.2
    write_volume(
        folder / "labelsTr/c1.nii.gz",
        read_volume(folder / "labelsTr/c1.nii.gz", None).array,
        Geometry.from_affine(SHAPE, moved),
    )
    assert read_geometry(folder / "labelsTr/c1.nii.gz") != GRID
    report = verify_dataset(folder)
    assert report.ok and report.warnings[0].case == "c1" and "origin" in report.warnings[0].text()


def test_counts_strays_duplicates_and_unused_labels(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "D", numTraining=5, labels={"background": 0, "a": 1, "b": 2, "c": 3})
    (folder / "imagesTr/c0_0002.nii.gz").write_bytes((folder / "imagesTr/c0_0001.nii.gz").read_bytes())
    (folder / "imagesTr/c9_0000.nii.gz").write_bytes((folder / "imagesTr/c0_0001.nii.gz").read_bytes())
    (folder / "imagesTr/notes.txt").write_text("x")
    (folder / "imagesTr/._c0_0000.nii.gz").write_text("x")
    for c in (0, 1):
        write_volume(folder / f"imagesTr/c2_{c:04d}.nii.gz", image(folder, f"imagesTr/c1_{c:04d}.nii.gz"), GRID)
    report = verify_dataset(folder)
    problems, warnings = [f.text() for f in report.problems], [f.text() for f in report.warnings]
    assert len(problems) == 3 and len(warnings) == 3
    assert "expected 5 training cases" in problems[0] and "found 3 label maps" in problems[0]
    assert "case c0" in problems[1] and "2 channels per case (m0, m1)" in problems[1]
    assert "case c9" in problems[2] and "expected a label map" in problems[2]
    assert "notes.txt" in warnings[0] and "c1, c2" in warnings[1] and "no voxel with 3" in warnings[2]


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_voxels_beside_their_header_are_no_strays(tmp_path: Path, ending: str) -> None:
    import SimpleITK as sitk

    folder = make_dataset(tmp_path / "D", file_ending=ending)
    for path in list(folder.glob("*/*.nii.gz")):
        sitk.WriteImage(
            sitk.ReadImage(path), folder / path.parent.name / path.name.replace(".nii.gz", ending), useCompression=True
        )
        path.unlink()
    assert verify_dataset(folder).text().splitlines() == ["D: 3 good cases, 0 bad cases, 0 problems, 0 warnings"]
    (folder / "imagesTr/notes.raw").write_bytes(b"x")
    (warning,) = verify_dataset(folder).warnings
    assert "notes.raw" in warning.text()


def test_listed_label_maps_may_lie_anywhere_but_bear_the_names_of_their_cases(tmp_path: Path) -> None:
    listed = {
        f"c{i}": {"images": [f"scans/c{i}_{c:04d}.nii.gz" for c in (0, 1)], "label": f"c{i}/c{i}.nii.gz"}
        for i in range(3)
    }
    folder = make_dataset(tmp_path / "D", dataset=listed)
    (folder / "imagesTr").rename(folder / "scans")
    for i in range(3):
        (folder / f"c{i}").mkdir()
        (folder / f"labelsTr/c{i}.nii.gz").rename(folder / f"c{i}/c{i}.nii.gz")
    assert verify_dataset(folder).text().splitlines() == ["D: 3 good cases, 0 bad cases, 0 problems, 0 warnings"]
    (folder / "c1/c1.nii.gz").rename(folder / "c1/drawn.nii.gz")
    listed["c1"]["label"] = "c1/drawn.nii.gz"
    (folder / "dataset.json").write_text(
        json.dumps({**json.loads((folder / "dataset.json").read_text()), "dataset": listed})
    )
    (problem,) = verify_dataset(folder).problems
    assert "1 others, for example" in problem.text() and "c1/drawn.nii.gz of case c1" in problem.text()
    assert f"medkd_convert nnunet {folder}" in problem.text()


@pytest.mark.parametrize(
    "content",
    [None, "{", "[]", '{"labels": {}}', '{"channel_names": {"0": "CT"}, "labels": {"a": 1}, "file_ending": "x"}'],
)
def test_a_bad_description_or_an_empty_folder_is_one_problem(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    report = verify_dataset(tmp_path)
    assert len(report.problems) == 1 and str(tmp_path) in report.problems[0].text()


def test_the_report_is_saved_for_machines_and_people(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "D")
    spoil(folder, "nan")
    report = verify_dataset(folder)
    report.save(tmp_path / "verification_report.json")
    assert load(Report, tmp_path / "verification_report.json") == report
    assert "case c1" in (tmp_path / "verification_report.txt").read_text()


def test_label_values_equal_numpy_unique_also_with_negative_values() -> None:
    rng = np.random.default_rng(0)
    for low, high in [(0, 3), (-2, 5), (100, 4000), (-5, -1)]:
        array = rng.integers(low, high, (130, 120, 100)).astype(np.int16)
        assert label_values(array) == tuple(np.unique(array))


def test_the_number_of_workers_follows_from_memory_also_for_4d_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nifti(tmp_path / "a.nii.gz", np.zeros((10, 10, 10, 4), np.uint8), np.eye(4))
    monkeypatch.setattr(verify.os, "cpu_count", lambda: 12)
    for free, expected in [(10**12, 12), (2 * 4000 * 16 * 3, 3), (10, 1)]:
        monkeypatch.setattr(verify.psutil, "virtual_memory", lambda free=free: type("Memory", (), {"available": free}))
        assert worker_count([tmp_path / "a.nii.gz", tmp_path / "missing.nii.gz"]) == expected
