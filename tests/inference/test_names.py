"""What files are called: cases by the names of their scans, label maps by the names that users give, links."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import DataError, RunError
from medkd.inference.folder import predict_folder
from medkd.inference.inputs import case_name, find_cases
from medkd.io.volumes import read_geometry, read_label


def paths(*names: str) -> list[Path]:
    return [Path(name) for name in names]


@pytest.mark.parametrize(
    ("files", "case"),
    [
        (["word_0001.nii.gz"], "word_0001"),
        (["word_0002.nii.gz"], "word_0002"),
        (["word_0000.nii.gz"], "word"),  # nnU-Net's name of an only channel
        (["scan_2024.mha"], "scan_2024"),
        (["a_0000.nii", "a_0001.nii"], "a"),
        (["t1_0003.nii", "t2_0003.nii"], "t1_0003"),
        (["flair.nii", "t1.nii"], "flair"),
    ],
)
def test_four_digits_are_a_channel_only_where_the_others_say_so(files: list[str], case: str) -> None:
    assert case_name(*paths(*files)) == case


def test_channels_in_another_order_than_their_numbers_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / "a_0001.nii", tmp_path / "a_0000.nii"]
    for file in files:
        file.touch()
    with pytest.raises(DataError, match=r"a_0001\.nii, a_0000\.nii are numbered in another order"):
        find_cases(files, 2)


def test_a_number_beyond_the_channels_is_no_channel(tmp_path: Path) -> None:
    (tmp_path / "a_0007.nii").touch()
    with pytest.raises(DataError, match="expects 2 channel"):
        find_cases(tmp_path / "a_0007.nii", 2)


def test_numbered_scans_of_one_channel_keep_their_own_label_maps(
    make_run: Callable[..., Path], scans: Path, tmp_path: Path
) -> None:
    run = make_run(folds=1)
    for i in (1, 2):
        file = (scans / f"case_{i}_0000.nii.gz").rename(tmp_path / f"word_000{i}.nii.gz")
        assert predict_folder(file, tmp_path / "out", run, device="cpu", mirror=False).predicted == [f"word_000{i}"]
    found = sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    assert found == ["word_0001.nii.gz", "word_0002.nii.gz"]


def test_one_scan_is_written_to_the_very_file(make_run: Callable[..., Path], scans: Path, tmp_path: Path) -> None:
    run, scan = make_run(folds=1), scans / "case_1_0000.nii.gz"
    predict_folder(scan, tmp_path / "out", run, device="cpu", mirror=False, save_probabilities=True)
    report = predict_folder(
        scan, tmp_path / "new" / "seg.nii.gz", run, device="cpu", mirror=False, save_probabilities=True
    )
    assert report.predicted == ["case_1"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["seg.nii.gz", "seg.npz"]
    found = read_label(tmp_path / "new" / "seg.nii.gz")
    assert np.array_equal(found.array, read_label(tmp_path / "out" / "case_1.nii.gz").array)
    assert found.geometry.differences(read_geometry(scan), tolerance=1e-5) == []


def test_one_file_for_several_scans_or_in_a_strange_format_is_refused(
    make_run: Callable[..., Path], scans: Path, tmp_path: Path
) -> None:
    run = make_run(folds=1)
    with pytest.raises(DataError, match="names one file, but there are 3 scans to predict; give a folder"):
        predict_folder(scans, tmp_path / "seg.nii.gz", run, device="cpu")
    with pytest.raises(DataError, match=r"cannot be written as \.mgz; end the name with \.nii\.gz"):
        predict_folder(scans / "case_0_0000.nii.gz", tmp_path / "seg.mgz", run, device="cpu")
    with pytest.raises(DataError, match="would overwrite the scan"):
        predict_folder(scans / "case_0_0000.nii.gz", scans / "case_0_0000.nii.gz", run, device="cpu")
    with pytest.raises(RunError, match="--continue needs an output folder"):
        predict_folder(scans / "case_0_0000.nii.gz", tmp_path / "seg.nii.gz", run, device="cpu", resume=True)
    assert not (tmp_path / "seg.nii.gz").exists()


def test_what_is_replaced_kept_or_passed_over_is_said(
    make_run: Callable[..., Path], scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run, out = make_run(folds=1), tmp_path / "out"
    (scans / "notes.txt").touch()
    assert predict_folder(scans, out, run, device="cpu", mirror=False).replaced == []
    assert "no scans, so left out: notes.txt" in caplog.text and "by new predictions" not in caplog.text
    (out / "case_2.nii.gz").unlink()
    kept = predict_folder(scans, out, run, device="cpu", mirror=False, resume=True)
    assert kept.skipped == ["case_0", "case_1"] and "2 cases are predicted already and are left out" in caplog.text
    again = predict_folder(scans, out, run, device="cpu", mirror=False)
    assert again.replaced == ["case_0", "case_1", "case_2"]
    assert "case_0.nii.gz and 2 more are replaced by new predictions" in caplog.text


def test_a_link_that_leads_nowhere_is_named(scans: Path) -> None:
    link = scans / "case_9_0000.nii.gz"
    link.symlink_to(scans / "gone.nii.gz")
    for inputs in (scans, link, [link]):
        with pytest.raises(DataError, match=r"case_9_0000\.nii\.gz is a link to .*gone\.nii\.gz, which is not there"):
            find_cases(inputs, 1)
    link.unlink()
    link.symlink_to(scans / "case_0_0000.nii.gz")
    assert len(find_cases(scans, 1)) == 4
