"""A model that is loaded once: arrays and files give what the command writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medkd
from medkd.core.errors import DataError, RunError
from medkd.core.geometry import Geometry
from medkd.inference.folder import predict_folder
from medkd.inference.loaded import load
from medkd.io.volumes import read_image, read_label, write_volume


def test_files_and_arrays_give_what_the_command_writes(
    make_run: Callable[..., Path], scans: Path, tmp_path: Path
) -> None:
    run, scan = make_run(spacing=1.5), scans / "case_1_0000.nii.gz"
    predict_folder(scan, tmp_path / "out", run, device="cpu")
    expected = read_label(tmp_path / "out" / "case_1.nii.gz")
    model = load(run, device="cpu")
    assert list(model.labels) == ["background", "liver", "spleen"] and model.channels == 1
    found = model.predict(scan)
    assert found.case == "case_1" and np.array_equal(found.labels, expected.array)
    found.save(tmp_path / "again.nii.gz")
    assert (tmp_path / "again.nii.gz").read_bytes() == (tmp_path / "out" / "case_1.nii.gz").read_bytes()
    image, geometry = read_image([scan], "x")
    before = image.copy()
    for array in (image, image[0]):
        assert np.array_equal(model.predict(array, geometry.spacing), expected.array)
    assert np.array_equal(image, before)  # the caller's voxels are left alone
    assert np.array_equal(model.predict(str(scan)).labels, expected.array)  # used often


def test_folds_and_settings_are_those_of_prediction(make_run: Callable[..., Path], scans: Path, tmp_path: Path) -> None:
    run, scan = make_run(), scans / "case_0_0000.nii.gz"
    predict_folder(scan, tmp_path / "out", run, folds=[1], device="cpu", mirror=False, step_size=1.0)
    model = load(run, [1], device="cpu", mirror=False, step_size=1.0)
    assert np.array_equal(model.predict(scan).labels, read_label(tmp_path / "out" / "case_0.nii.gz").array)


@pytest.mark.parametrize(
    ("shape", "spacing", "text"),
    [
        ((8, 8), (1, 1, 1), "found the shape"),
        ((2, 8, 8, 8), (1, 1, 1), r"of 1 channel\(s\)"),
        ((8, 0, 8), (1, 1, 1), "found the shape"),
        ((8, 8, 8), None, "voxel size in mm"),
        ((8, 8, 8), (1, 1), "voxel size in mm"),
        ((8, 8, 8), (1, 0, 1), "voxel size in mm"),
        ((8, 8, 8), (1, float("nan"), 1), "voxel size in mm"),
        ((8, 8, 8), 1.0, "voxel size in mm along z, y and x, three positive numbers, found 1.0"),
        ((8, 8, 8), "111", "voxel size in mm"),
        ((8, 8, 8), [1, [1, 1], 1], "voxel size in mm"),
        ((8, 8, 8), {1, 2, 3}, "voxel size in mm"),
        ((8, 8, 8), (1, 1j, 1), "voxel size in mm"),
    ],
)
def test_arrays_that_are_no_scan_are_refused(
    make_run: Callable[..., Path], shape: tuple[int, ...], spacing: Any, text: str
) -> None:
    with pytest.raises(DataError, match=text):
        load(make_run(folds=1), device="cpu").predict(np.zeros(shape), spacing)


def test_other_inputs_are_refused(make_run: Callable[..., Path], scans: Path, tmp_path: Path) -> None:
    model = load(make_run(folds=1), device="cpu")
    with pytest.raises(DataError, match="Expected one scan, found 3"):
        model.predict(scans)
    with pytest.raises(DataError, match="says its spacing itself"):
        model.predict(scans / "case_0_0000.nii.gz", (1, 1, 1))  # type: ignore[call-overload]
    with pytest.raises(DataError, match="Expected finite numbers"):
        model.predict(np.full((8, 8, 8), np.nan), (1, 1, 1))
    for voxels in (np.full((8, 8, 8), 1e300), np.ones((8, 8, 8), complex), np.ones((8, 8, 8), bool)):
        with pytest.raises(DataError, match=f"Expected finite numbers as voxels, found {voxels.dtype}"):
            model.predict(voxels, (1, 1, 1))
    with pytest.raises(RunError, match="is not a medkd run folder"):
        load(tmp_path)


def test_the_face_loads_models_of_both_tasks_and_finds_runs(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(folds=1)
    model = medkd.load(f"1/{run.name}", root=tmp_path, device="cpu", mirror=False)
    assert model.task == "segmentation"
    assert model.predict(np.zeros((8, 9, 10)), (1, 1, 1)).shape == (8, 9, 10)  # type: ignore[union-attr, call-overload]


def test_scans_unlike_the_training_cases_are_named_to_whoever_calls_from_python(
    make_run: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(make_run(folds=1), device="cpu", mirror=False)
    voxels = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    write_volume(tmp_path / "small.nii.gz", voxels, Geometry.from_spacing(voxels.shape, (0.01,) * 3))
    model.predict(tmp_path / "small.nii.gz")
    assert "case small: expected a spacing near the plan's" in caplog.text
    caplog.clear()
    model.predict(voxels, (0.01,) * 3)
    assert "case array: expected a spacing near the plan's" in caplog.text
    with pytest.raises(DataError, match="expected a spacing near"):
        model.predict(tmp_path / "small.nii.gz", strict=True)
