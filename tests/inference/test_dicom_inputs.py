"""DICOM series as inputs of a prediction: a case per series, label maps on the series' own grids."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.core.made_with import MADE_WITH_FILE
from medkd.inference.folder import predict_folder
from medkd.inference.inputs import SETTINGS_FILE, case_name, find_cases
from medkd.io.volumes import read_geometry, read_image, read_label, write_volume
from tests.io.dicom_series import SHAPE, clutter, stored_values, write_series
from tests.io.test_dicom import ORIENTATIONS


def test_every_series_of_a_tree_is_predicted_on_its_own_grid(make_run: Callable[..., Path], tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    clutter(tree)
    write_series(tree / "p1" / "CT", orientation=ORIENTATIONS["oblique"])
    write_series(tree / "p2", orientation=ORIENTATIONS["sagittal"])
    write_series(tree / "p3")[2].unlink()
    report = predict_folder(tree, tmp_path / "out", make_run(folds=1), mirror=False, step_size=1.0)
    assert report.predicted == ["p1_CT", "p2"] and set(report.failed) == {"p3"}
    assert "slices are missing" in report.failed["p3"]
    listed = [MADE_WITH_FILE, "p1_CT.nii.gz", "p2.nii.gz", SETTINGS_FILE]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == listed
    for case, folder in (("p1_CT", "p1/CT"), ("p2", "p2")):
        found = read_label(tmp_path / "out" / f"{case}.nii.gz").geometry
        assert found.differences(read_geometry(tree / folder), tolerance=1e-5) == []


@pytest.mark.real_data
def test_a_real_series_gets_a_label_map_of_its_own_geometry(
    make_run: Callable[..., Path], real_data: Path, tmp_path: Path
) -> None:
    series = real_data / "odd_files" / "torchio_dicom"
    report = predict_folder(series, tmp_path, make_run(folds=1, spacing=4.0), mirror=False, step_size=1.0)
    assert report.predicted == ["torchio_dicom"]
    assert read_geometry(tmp_path / "torchio_dicom.nii.gz").differences(read_geometry(series), tolerance=1e-5) == []


def test_a_series_folder_is_one_case(tmp_path: Path) -> None:
    write_series(tmp_path / "scan 1")
    case = find_cases(tmp_path / "scan 1", 1)[0]
    assert case.case == "scan_1" and len(case.images) == SHAPE[0]
    assert np.array_equal(read_image(case.images, case.case)[0][0], stored_values() - 1024)
    assert case_name(tmp_path / "scan 1") == "scan_1"


def test_channels_are_one_series_folder_each(tmp_path: Path) -> None:
    for i, name in enumerate(("t1", "t2")):
        write_series(tmp_path / name, stored_values(seed=i))
    with pytest.raises(DataError, match="one folder with a series per channel"):
        find_cases(tmp_path, 2)
    (case,) = find_cases([tmp_path / "t1", tmp_path / "t2"], 2)
    image, _ = read_image(case.images, case.case)
    assert case.case == "t1" and np.array_equal(image, [stored_values(seed=i) - 1024 for i in range(2)])


def test_dicom_and_other_scans_in_one_folder_are_not_guessed_at(tmp_path: Path) -> None:
    write_series(tmp_path)
    write_volume(tmp_path / "scan.nii.gz", np.zeros(SHAPE, np.int16), Geometry.from_spacing(SHAPE, (1, 1, 1)))
    with pytest.raises(DataError, match="DICOM files and scans of other formats"):
        find_cases(tmp_path, 1)


def test_a_tree_without_a_scan_says_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="DICOM series; found none"):
        find_cases(tmp_path / "empty", 1)
    write_series(tmp_path / "scout", stored_values()[:1])
    with pytest.raises(DataError, match="single slice, for example a localizer"):
        find_cases(tmp_path / "scout", 1)


def test_a_damaged_file_without_a_series_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_series(tmp_path / "good")
    bad = write_series(tmp_path / "bad", stored_values()[:1])[0]
    bad.write_bytes(bad.read_bytes()[:250])
    assert [case.case for case in find_cases(tmp_path, 1)] == ["good"] and str(bad) in caplog.text
    shutil.rmtree(tmp_path / "good")
    with pytest.raises(DataError, match="damaged DICOM file"):
        find_cases(tmp_path, 1)
