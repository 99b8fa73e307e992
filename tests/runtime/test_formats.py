"""DICOM series in and every format out, by an exported model in a process without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from medkd.io.volumes import read_geometry, read_label, read_volume  # noqa: E402
from tests.io.dicom_series import on_slice, write_series  # noqa: E402
from tests.runtime.test_predict_exported import OLD, exported, predict  # noqa: E402

__all__ = ["exported"]
FORMATS = ("nifti", "nrrd", "mha", "dicom-seg", "rtstruct")


def test_series_in_and_every_format_out(exported: Path, tmp_path: Path) -> None:
    """Three series, one of which lacks a slice: the others go on, and ``--continue`` makes what is missing."""
    scan = read_volume(OLD / "scan_0000.nii.gz")
    stored = np.clip(np.rint(scan.array), -1000, 3000).astype(int) + 1024
    for name in ("a", "b", "c"):
        change = on_slice(-1, PatientID=name, FrameOfReferenceUID="1.2.3")
        write_series(tmp_path / "in" / name, stored, spacing=scan.geometry.spacing[1:], change=change)
    sorted((tmp_path / "in" / "c").iterdir())[3].unlink()
    out = tmp_path / "out"
    arguments = ("-i", tmp_path / "in", "-o", out, "-m", exported, "--no-tta", "--threads", 1, "--format", *FORMATS)
    done = predict(*arguments)
    assert done.returncode == 1 and done.stdout.startswith("2 scans predicted") and "1 failed: c" in done.stdout
    assert "Traceback" not in done.stderr and "slices are missing" in done.stderr
    for case in "ab":
        expected = read_label(out / f"{case}.nii.gz")
        assert expected.array.any()
        assert expected.geometry.differences(read_geometry(tmp_path / "in" / case), tolerance=1e-5) == []
        for ending in (".seg.nrrd", ".mha"):
            assert np.array_equal(read_label(out / f"{case}{ending}").array, expected.array)
        read = pydicom.dcmread(out / f"{case}.dcm")
        assert read.PatientID == case and read.FrameOfReferenceUID == "1.2.3"
        assert read.pixel_array.sum() == (expected.array > 0).sum()
        assert pydicom.dcmread(out / f"{case}.rtstruct.dcm").PatientID == case
    (out / "b.rtstruct.dcm").unlink()
    again = predict(*arguments, "--continue")
    assert again.stdout.startswith("1 scans predicted") and "1 were there already" in again.stdout
    assert (out / "b.rtstruct.dcm").exists()


def test_damaged_and_foreign_series_are_one_sentence(exported: Path, tmp_path: Path) -> None:
    paths = write_series(tmp_path / "cut")
    paths[2].write_bytes(paths[2].read_bytes()[:-40])
    write_series(tmp_path / "mixed", change=on_slice(2, Rows=4, Columns=20))
    write_series(tmp_path / "same", change=on_slice(1, ImagePositionPatient=[-31.5, 12.25, -700.0]))
    for name, text in (("cut", "truncated or damaged"), ("mixed", "different sizes"), ("same", "lie where another")):
        done = predict("-i", tmp_path / name, "-o", tmp_path / "out", "-m", exported, "--format", "dicom-seg")
        errors = [line for line in done.stderr.splitlines() if text in line]
        assert done.returncode == 1 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    assert not list((tmp_path / "out").glob("*.dcm"))
