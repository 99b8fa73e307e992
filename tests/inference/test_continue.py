"""``medkd_predict --continue`` keeps what these weights and settings made of the scans as they are; nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medkd.core.errors import RunError
from medkd.core.made_with import KnownPredictions, scan_digest
from medkd.core.settled import SETTINGS_FILE
from medkd.inference.folder import predict_folder
from medkd.io.volumes import read_volume, write_volume

FAST: dict[str, Any] = {"device": "cpu", "mirror": False, "step_size": 1.0}
NOTES = "made_with.jsonl"
ALL = ["case_0", "case_1", "case_2"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("case_*")}


def replace_scan(scans: Path, case: str) -> None:
    """By that of another patient."""
    (file,) = scans.glob(f"{case}_*")
    volume = read_volume(file)
    write_volume(file, np.flip(volume.array, 0) * 2 + 1, volume.geometry)


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    return make_run(folds=2)


def test_a_second_model_that_is_ended_leaves_none_of_the_first_ones(run: Path, scans: Path, tmp_path: Path) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    predict_folder(scans, out, run, folds=[0], **FAST)
    predict_folder(scans, alone, run, folds=[1], **FAST)
    assert all(content(out)[name] != made for name, made in content(alone).items())
    first = predict_folder(scans, out, run, folds=[1], part=(0, 3), **FAST)
    assert (first.predicted, first.replaced) == (["case_0"], ["case_0"])
    assert list(content(out)) == ["case_0.nii.gz"]  # what the settings beside them say of label maps is true
    rest = predict_folder(scans, out, run, folds=[1], resume=True, **FAST)
    assert (rest.predicted, rest.skipped) == (["case_1", "case_2"], ["case_0"])
    assert content(out) == content(alone)


def test_label_maps_of_other_cases_are_not_called_another_models(run: Path, scans: Path, tmp_path: Path) -> None:
    out, others = tmp_path / "out", tmp_path / "others"
    predict_folder(scans, out, run, folds=[0], **FAST)
    before, settings = content(out), (out / SETTINGS_FILE).read_bytes()
    others.mkdir()
    shutil.copy(scans / "case_0_0000.nii.gz", others / "new_0000.nii.gz")
    with pytest.raises(
        RunError, match=r"other cases there \(case_0\.nii\.gz, one of 3\) were made with other settings"
    ):
        predict_folder(others, out, run, folds=[1], **FAST)
    assert content(out) == before and (out / SETTINGS_FILE).read_bytes() == settings
    notes = (out / NOTES).rename(tmp_path / NOTES)  # an earlier version took none
    with pytest.raises(
        RunError, match=r"other cases there \(case_0\.nii\.gz, one of 3\) were made with other settings"
    ):
        predict_folder(others, out, run, folds=[1], **FAST)
    notes.rename(out / NOTES)
    assert predict_folder(others, out, run, folds=[0], **FAST).predicted == ["new"]  # by the same they may lie there
    assert predict_folder(scans, out, run, folds=[0], resume=True, **FAST).skipped == ALL


def test_a_scan_that_was_replaced_is_predicted_anew(
    run: Path, scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    predict_folder(scans, out, run, save_probabilities=True, **FAST)
    before = content(out)
    replace_scan(scans, "case_1")
    again = predict_folder(scans, out, run, save_probabilities=True, resume=True, **FAST)
    assert (again.predicted, again.skipped, again.replaced) == (["case_1"], ["case_0", "case_2"], ["case_1"])
    assert "case_1.nii.gz is replaced by new predictions, since" in caplog.text
    assert {name for name, made in content(out).items() if made != before[name]} == {"case_1.nii.gz", "case_1.npz"}
    assert predict_folder(scans, out, run, save_probabilities=True, resume=True, **FAST).skipped == ALL


def test_files_that_others_put_there_are_not_kept(run: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_folder(scans, out, run, save_probabilities=True, **FAST)
    shutil.copy(out / "case_0.nii.gz", out / "case_1.nii.gz")
    shutil.copy(out / "case_0.npz", out / "case_2.npz")
    again = predict_folder(scans, out, run, save_probabilities=True, resume=True, **FAST)
    assert again.predicted == ["case_1", "case_2"]
    assert predict_folder(scans, out, run, resume=True, **FAST).skipped == ALL  # probabilities are no longer asked for


def test_other_terms_are_other_label_maps(run: Path, scans: Path, tmp_path: Path) -> None:
    """NRRD files hold names and colours."""
    out, terms = tmp_path / "out", tmp_path / "terms.json"
    predict_folder(scans, out, run, format="nrrd", **FAST)
    terms.write_text('{"liver": {"code": "1", "meaning": "Liver", "colour": [1, 2, 3]}}')
    again = predict_folder(scans, out, run, format="nrrd", terms=terms, resume=True, **FAST)
    assert again.predicted == ALL
    assert predict_folder(scans, out, run, format="nrrd", terms=terms, resume=True, **FAST).skipped == ALL


def test_parts_of_several_machines_note_their_own_and_know_all(run: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for index in range(2):
        predict_folder(scans, out, run, part=(index, 2), **FAST)
    assert {path.name for path in out.glob("made_with*")} == {"made_with_1_of_2.jsonl", "made_with_2_of_2.jsonl"}
    assert predict_folder(scans, out, run, resume=True, **FAST).skipped == ALL
    replace_scan(scans, "case_1")
    assert predict_folder(scans, out, run, resume=True, **FAST).predicted == ["case_1"]
    assert predict_folder(scans, out, run, resume=True, part=(1, 2), **FAST).skipped == ["case_1"]
    predict_folder(scans, out, run, folds=[1], **FAST)  # of other weights, so the parts' notes go
    assert [path.name for path in out.glob("made_with*")] == [NOTES]


def test_what_an_earlier_version_predicted_is_taken_once_and_said(
    run: Path, scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    predict_folder(scans, out, run, **FAST)
    (out / NOTES).unlink()
    (out / "case_2.nii.gz").unlink()
    kept = predict_folder(scans, out, run, resume=True, **FAST)
    assert (kept.predicted, kept.skipped) == (["case_2"], ["case_0", "case_1"])
    assert "an earlier version predicted 2 cases, for example case_0, and did not note of which scans" in caplog.text
    replace_scan(scans, "case_0")
    assert predict_folder(scans, out, run, resume=True, **FAST).predicted == ["case_0"]


def test_what_another_program_predicted_is_neither_kept_nor_lost(run: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_folder(scans, out, run, **FAST)
    (out / NOTES).unlink()
    (out / SETTINGS_FILE).unlink()
    before = content(out)
    with pytest.raises(
        RunError, match=r"nobody knows what made case_0\.nii\.gz there \(3 such files\); choose another"
    ):
        predict_folder(scans, out, run, resume=True, **FAST)
    assert content(out) == before
    assert predict_folder(scans, tmp_path / "new", run, resume=True, **FAST).predicted == ALL  # nothing to go on with


def test_a_killed_start_does_not_pass_old_label_maps_off(
    run: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    predict_folder(scans, out, run, folds=[0], **FAST)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for step, left in (("begin", []), ("add", ["case_0.nii.gz"])):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(KnownPredictions, step, killed)
            predict_folder(scans, out, run, folds=[1], **FAST)
        assert list(content(out)) == left
    assert predict_folder(scans, out, run, folds=[1], resume=True, **FAST).predicted == ALL


def test_a_scan_is_all_of_its_files(tmp_path: Path) -> None:
    for name in ("a.mhd", "a.raw", "b.mhd", "voxels.bin", "s/1", "s/2", "c.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "b.mhd").write_text("NDims = 3\nElementDataFile = voxels.bin\n")
    for files, change in (
        (["a.mhd"], "a.raw"),
        (["b.mhd"], "voxels.bin"),
        (["s"], "s/2"),
        (["c.nii", "a.mhd"], "c.nii"),
        ([f"s/{1 + place % 2}" for place in range(12)], "s/2"),
    ):
        paths = [tmp_path / name for name in files]
        before = scan_digest(paths)
        assert scan_digest(paths) == before
        (tmp_path / change).write_text(f"another content for {files}")
        assert scan_digest(paths) != before
    with pytest.raises(OSError):
        scan_digest([tmp_path / "none.nii"])
