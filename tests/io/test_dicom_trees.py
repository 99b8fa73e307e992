"""DICOM series among other files: in trees, beside clutter, and none at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import DataError
from medkd.io.dicom import find_series, read_files
from medkd.io.volumes import read_image, read_volume
from tests.io.dicom_series import clutter, on_slice, stored_values, write_series


def test_a_tree_is_split_into_series_and_everything_else_is_passed_over(tmp_path: Path) -> None:
    clutter(tmp_path / "disc")
    first, second, third = (stored_values(seed=i) for i in range(3))
    write_series(tmp_path / "disc" / "Müller 1" / "CT", first)
    together = tmp_path / "disc" / "p2"
    write_series(
        together,
        second,
        name=lambda z: f"b{z}",
        change=on_slice(-1, SeriesNumber=4, SeriesDescription="Körper 3.0 / axial"),
    )
    write_series(
        together,
        third,
        name=lambda z: f"a{z}",
        change=on_slice(-1, SeriesNumber=4, SeriesDescription="Körper 3.0 / axial"),
    )
    write_series(
        together, third[:1], name=lambda z: "scout", change=on_slice(-1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    )
    write_series(
        together, third[:1], name=lambda z: "report", change=on_slice(-1, Modality="SR", Rows=None, PixelData=None)
    )
    study = find_series(tmp_path / "disc")
    assert not study.damaged
    assert [series.name for series in study.scans] == [
        "M_ller_1_CT",
        "p2_4_K_rper_3_0_axial",
        "p2_4_K_rper_3_0_axial_2",
    ]
    found = [read_image(series.files, series.name)[0][0] for series in study.scans]
    assert np.array_equal(found[0], first - 1024)
    assert {tuple(a[0, 0]) for a in found[1:]} == {tuple(a[0, 0] - 1024) for a in (second, third)}
    assert sorted(series.not_a_scan.split()[3] for series in study.others) == ["image,", "localizer"]
    with pytest.raises(DataError, match=r"expected one DICOM series, found 3: CT series"):
        read_volume(tmp_path / "disc")
    with pytest.raises(DataError, match="different series"):
        read_files([study.scans[0].files[0], study.scans[1].files[0]])


def test_one_scan_among_other_objects_needs_no_choice(tmp_path: Path) -> None:
    clutter(tmp_path)
    write_series(tmp_path / "x", stored_values())
    write_series(tmp_path / "scout", stored_values((1, 4, 4)))
    assert np.array_equal(read_volume(tmp_path, None).array, stored_values() - 1024)


def test_anonymised_series_without_uid_are_told_apart_by_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_series(tmp_path / name, change=on_slice(-1, SeriesInstanceUID=""))
    assert [series.name for series in find_series(tmp_path).scans] == ["a", "b"]


def test_a_folder_without_dicom_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match="folder without DICOM images"):
        read_volume(tmp_path)
