"""Folders of scans in, label maps in the same geometry out; what fails is said and the rest goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medkd.core.checkpoint import load_checkpoint, save_checkpoint
from medkd.core.errors import DataError, RunError
from medkd.core.geometry import Geometry
from medkd.core.made_with import MADE_WITH_FILE
from medkd.core.plan import Plan
from medkd.core.serial import load, save
from medkd.inference import outputs as writing
from medkd.inference.folder import predict_folder
from medkd.inference.inputs import SETTINGS_FILE, case_name, find_cases
from medkd.inference.settings import PredictSettings
from medkd.io.volumes import read_geometry, read_label, stem, write_volume


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_geometry_out_is_geometry_in(make_run: Callable[..., Path], scans: Path, tmp_path: Path) -> None:
    report = predict_folder(scans, tmp_path / "out", make_run(folds=1))
    assert report.predicted == ["case_0", "case_1", "case_2"] and not report.failed
    for i in range(3):
        expected = read_geometry(scans / f"case_{i}_0000.nii.gz")
        found = read_label(tmp_path / "out" / f"case_{i}.nii.gz")
        assert found.geometry.differences(expected, tolerance=1e-5) == []
        assert set(np.unique(found.array)) <= {0, 1, 2}


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name",
    [
        "nibabel/anatomical.nii",  # big-endian, left-handed
        "nibabel/reoriented_anat_moved.nii",  # oblique
        "nibabel/standard.nii.gz",
        "nibabel/someones_anatomy.nii.gz",
        "monai/test_0000_t2_tse_tra_4.nii.gz",  # oblique
    ],
)
def test_odd_orientations_keep_their_geometry(
    make_run: Callable[..., Path], real_data: Path, tmp_path: Path, name: str
) -> None:
    scan = real_data / "odd_files" / name
    report = predict_folder(scan, tmp_path / "out", make_run(folds=1, spacing=4.0), mirror=False, step_size=1.0)
    assert not report.failed
    written = tmp_path / "out" / (case_name(scan) + scan.name[len(stem(scan)) :])
    assert read_geometry(written).differences(read_geometry(scan), tolerance=1e-5) == []


@pytest.mark.real_data
def test_bad_scans_are_reported_and_the_others_go_on(
    make_run: Callable[..., Path], scans: Path, real_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = real_data / "odd_files"
    shutil.copy(odd / "nibabel" / "example4d.nii.gz", scans / "a4d_0000.nii.gz")
    shutil.copy(odd / "nibabel_invalid" / "invalid.nii.gz", scans / "invalid_0000.nii.gz")
    (scans / "cut_0000.nii.gz").write_bytes((scans / "case_0_0000.nii.gz").read_bytes()[:2000])
    nan = np.full((8, 8, 8), np.nan, np.float32)
    write_volume(scans / "nan_0000.nii.gz", nan, Geometry.from_spacing(nan.shape, (1, 1, 1)))
    report = predict_folder(scans, tmp_path / "out", make_run(folds=1))
    assert report.predicted == ["case_0", "case_1", "case_2"]
    assert set(report.failed) == {"a4d", "invalid", "cut", "nan"}
    assert "expected a 3D image, found 4D" in report.failed["a4d"]
    assert all(name in text and "\n" not in text for name, text in report.failed.items())
    assert names(tmp_path / "out") == ["case_0.nii.gz", "case_1.nii.gz", "case_2.nii.gz", MADE_WITH_FILE, SETTINGS_FILE]
    assert all(text in caplog.text for text in report.failed.values())


def test_probabilities_are_written_in_nnunets_layout(
    make_run: Callable[..., Path], scans: Path, tmp_path: Path
) -> None:
    predict_folder(scans, tmp_path / "out", make_run(folds=1), save_probabilities=True)
    content = np.load(tmp_path / "out" / "case_1.npz")["probabilities"]
    assert content.dtype == np.float16 and content.shape == (3, 17, 9, 21)
    labels = read_label(tmp_path / "out" / "case_1.nii.gz").array
    assert (content.argmax(0) == labels).mean() > 0.99  # ties at half precision


def test_predictions_of_other_weights_are_not_continued(
    make_run: Callable[..., Path], scans: Path, tmp_path: Path
) -> None:
    run, out = make_run(folds=1), tmp_path / "out"
    predict_folder(scans, out, run)
    (final,) = run.glob("fold_*/checkpoint_final.pt")
    content = load_checkpoint(final)
    next(v for v in content["network"].values() if v.is_floating_point()).add_(1)
    save_checkpoint(final, content)
    with pytest.raises(RunError, match="other settings or weights"):
        predict_folder(scans, out, run, resume=True)


def test_continue_leaves_finished_cases_alone(make_run: Callable[..., Path], scans: Path, tmp_path: Path) -> None:
    run, out = make_run(folds=1), tmp_path / "out"
    predict_folder(scans, out, run)
    (out / "case_1.nii.gz").unlink()
    before = (out / "case_0.nii.gz").stat().st_mtime_ns
    report = predict_folder(scans, out, run, resume=True)
    assert report.predicted == ["case_1"] and report.skipped == ["case_0", "case_2"]
    assert (out / "case_0.nii.gz").stat().st_mtime_ns == before
    assert predict_folder(scans, out, run).predicted == ["case_0", "case_1", "case_2"]
    with pytest.raises(RunError, match="other settings"):
        predict_folder(scans, out, run, resume=True, mirror=False)


def test_predictions_of_another_plan_are_not_continued(
    make_run: Callable[..., Path], scans: Path, tmp_path: Path
) -> None:
    run, out = make_run(folds=1), tmp_path / "out"
    predict_folder(scans, out, run)
    settings = out / "predict_settings.json"
    unsaid = {key: value for key, value in json.loads(settings.read_text()).items() if key != "preprocessing"}
    plan = Plan.load(run / "plans.json")
    (name,) = plan.configurations
    changed = replace(plan.configurations[name], normalization=("none",))
    save(run / "plans.json", replace(plan, configurations={name: changed}))
    with pytest.raises(RunError, match="made with other settings"):
        predict_folder(scans, out, run, resume=True)
    settings.write_text(json.dumps(unsaid))  # of an earlier version, which neither said it nor took notes
    (out / MADE_WITH_FILE).unlink()
    assert predict_folder(scans, out, run, resume=True).predicted == []


def test_parts_share_the_cases(make_run: Callable[..., Path], scans: Path, tmp_path: Path) -> None:
    run = make_run(folds=1)
    reports = [predict_folder(scans, tmp_path / "out", run, part=(i, 2)).predicted for i in range(2)]
    assert reports == [["case_0", "case_2"], ["case_1"]]
    with pytest.raises(RunError, match="part"):
        predict_folder(scans, tmp_path / "out", run, part=(2, 2))


def test_settings_are_kept_beside_the_predictions(make_run: Callable[..., Path], scans: Path, tmp_path: Path) -> None:
    run = make_run(folds=2)
    predict_folder(scans, tmp_path / "out", run, mirror=False, step_size=0.7)
    settings = load(PredictSettings, tmp_path / "out" / SETTINGS_FILE)
    assert (settings.folds, settings.step_size, settings.mirror_axes, settings.run) == (("0", "1"), 0.7, (), str(run))


def test_a_full_disk_stops_and_leaves_nothing(
    make_run: Callable[..., Path], scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise DataError("Writing failed: No space left on device.") from OSError(
            errno.ENOSPC, "No space left on device"
        )

    monkeypatch.setattr(writing, "write_volume", full)
    with pytest.raises(DataError, match="No space left"):
        predict_folder(scans, tmp_path / "out", make_run(folds=1))
    assert names(tmp_path / "out") == [MADE_WITH_FILE, SETTINGS_FILE]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_killed_prediction_leaves_no_half_file(make_run: Callable[..., Path], scans: Path, tmp_path: Path) -> None:
    run, out = make_run(folds=1), tmp_path / "out"
    slow_write = (
        "import sys, time, medkd.io.nifti as n; from pathlib import Path; from medkd.inference.folder import "
        "predict_folder\n"
        "def write(path, *rest):\n    Path(path).write_bytes(b'half'); print('writing', flush=True); "
        "time.sleep(60)\n"
        "n.write_nifti = write; predict_folder(*(Path(a) for a in sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow_write, str(scans), str(out), str(run)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"writing\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [n for n in names(out) if n.endswith(".nii.gz") and not n.startswith(".")] == []
    assert predict_folder(scans, out, run, resume=True).predicted == ["case_0", "case_1", "case_2"]


def test_scans_are_never_overwritten(make_run: Callable[..., Path], tmp_path: Path) -> None:
    write_volume(tmp_path / "scan.nii.gz", np.zeros((4, 5, 6), np.float32), Geometry.from_spacing((4, 5, 6), (1, 1, 1)))
    with pytest.raises(DataError, match="would overwrite"):
        predict_folder(tmp_path / "scan.nii.gz", tmp_path, make_run(folds=1))


def touch(folder: Path, *files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in files:
        (folder / name).touch()
    return folder


def test_inputs_may_be_a_folder_a_file_or_channels(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "b_0000.nii.gz", "b_0001.nii.gz", "a_0000.mha", "a_0001.mha", "notes.txt")
    cases = find_cases(folder, 2)
    assert [(c.case, [p.name for p in c.images]) for c in cases] == [
        ("a", ["a_0000.mha", "a_0001.mha"]),
        ("b", ["b_0000.nii.gz", "b_0001.nii.gz"]),
    ]
    assert find_cases(folder / "b_0000.nii.gz", 2) == [cases[1]]
    assert find_cases([folder / "b_0000.nii.gz", folder / "a_0001.mha"], 2)[0].case == "b"
    assert [c.case for c in find_cases(touch(tmp_path / "plain", "x.nii.gz", "y.nrrd"), 1)] == ["x", "y"]


@pytest.mark.parametrize(
    ("files", "channels", "text"),
    [
        ((), 1, "found none"),
        (("a.nii.gz",), 2, "found none"),
        (("a_0000.nii", "a_0000.mha"), 1, "more than one format"),
    ],
)
def test_unusable_inputs_are_refused(tmp_path: Path, files: tuple[str, ...], channels: int, text: str) -> None:
    with pytest.raises(DataError, match=text):
        find_cases(touch(tmp_path / "in", *files), channels)


@pytest.mark.parametrize(
    ("files", "channels", "strays"),
    [
        (
            ("p_0000.nii.gz", "p_0001.nii.gz", "p_0002.nii.gz", "other.nii.gz"),
            1,
            "3 of 4 .*: other.nii.gz, p_0001.nii.gz, p_0002.nii.gz;",
        ),
        (
            ("a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii.gz"),
            2,
            "CASE_0000.nii.gz and CASE_0001.nii.gz, .* 1 of 3 .*: b_0001.nii.gz;",
        ),
        (("a_0000.mha", "a_0001.nii.gz"), 2, ": a_0001.nii.gz;"),
        (("b_0001.nii.gz",), 2, "only b_0001.nii.gz;"),
        ((*(f"a_{i:04d}.nii" for i in range(30)),), 1, r"a_0020.nii, … \(29 in all\)"),
    ],
)
def test_scans_that_belong_to_no_case_are_named(
    tmp_path: Path, files: tuple[str, ...], channels: int, strays: str
) -> None:
    with pytest.raises(DataError, match=strays):
        find_cases(touch(tmp_path / "in", *files), channels)


def test_label_maps_beside_their_scans_are_no_strays(make_run: Callable[..., Path], scans: Path) -> None:
    run = make_run(folds=1)
    predict_folder(scans, scans, run)
    assert predict_folder(scans, scans, run, resume=True).skipped == ["case_0", "case_1", "case_2"]
    (scans / SETTINGS_FILE).unlink()
    with pytest.raises(DataError, match=r"case_0\.nii\.gz, case_1\.nii\.gz, case_2\.nii\.gz;"):
        find_cases(scans, 1)


def test_missing_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        find_cases(tmp_path / "nothing", 1)
    with pytest.raises(DataError, match="expects 2 channel"):
        find_cases(touch(tmp_path / "in", "scan.nii.gz") / "scan.nii.gz", 2)


def test_a_scan_unlike_the_training_cases_is_named_and_refused_when_strict(
    make_run: Callable[..., Path], scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = np.zeros((8, 8, 8), np.float32)
    write_volume(scans / "empty_0000.nii.gz", empty, Geometry.from_spacing(empty.shape, (1, 1, 1)))
    small = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    write_volume(scans / "small_0000.nii.gz", small, Geometry.from_spacing(small.shape, (0.001,) * 3))
    huge = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
    write_volume(scans / "huge_0000.nii.gz", huge, Geometry.from_spacing(huge.shape, (1000.0,) * 3))
    run = make_run(folds=1)
    report = predict_folder(scans, tmp_path / "out", run)
    assert "case empty: expected an image in channel 0" in caplog.text
    assert "case small: expected a spacing near the plan's" in caplog.text
    assert list(report.failed) == ["huge"] and "check the voxel size in its header" in report.failed["huge"]
    report = predict_folder(scans, tmp_path / "strict", run, strict=True)
    assert set(report.failed) == {"empty", "small", "huge"} and report.predicted == ["case_0", "case_1", "case_2"]
    assert all("or leave out --strict" in text for text in report.failed.values())
