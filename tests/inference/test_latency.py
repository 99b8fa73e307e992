"""Runs are timed together, through the predictor, and the report shows what was measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from medkd.cli.report import main
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError, RunError
from medkd.core.geometry import Geometry
from medkd.core.timing import TIMINGS_FILE, Timings
from medkd.exporting.export import _scans_for_int8
from medkd.inference.latency import _first_scan, measure_scans
from medkd.io.volumes import write_volume
from medkd.reproduction.inner import _tell_of_unlabelled
from tests.inference.conftest import LABELS

NAME = "Dataset001_Tiny"


def make_raw(root: Path) -> Path:
    raw, geometry = root / "raw" / NAME, Geometry.from_spacing((12, 20, 18), (1.0, 1.0, 1.0))
    image = np.random.default_rng(0).normal(100, 20, geometry.shape).astype(np.float32)
    write_volume(raw / "imagesTr" / "case_0_0000.nii.gz", image, geometry)
    write_volume(raw / "labelsTr" / "case_0.nii.gz", np.zeros(geometry.shape, np.int16), geometry)
    DatasetDescription(channel_names=("MRI",), labels=LABELS, num_training=1).save(raw / "dataset.json")
    return raw


def test_all_trained_runs_are_timed_on_one_scan(
    tmp_path: Path, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make_raw(tmp_path)
    run = make_run(folds=1)
    shutil.copytree(run, run.parent / "plain_unet__3d__second")
    shutil.copytree(run, run.parent / "plain_unet__3d__untrained", ignore=lambda *_: ["fold_0"])
    arguments = ["1", "--root", str(tmp_path), "--measure", "--repetitions", "2", "--device", "cpu"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "plain_unet__3d__second: " in out and "per scan" in out
    timings = Timings.load(run.parent)
    assert timings is not None and (timings.unit, timings.case, timings.size) == ("scan", "case_0", (12, 20, 18))
    assert {name: len(taken) for name, taken in timings.seconds.items()} == {run.name: 2, "plain_unet__3d__second": 2}
    assert str(tmp_path) not in (run.parent / TIMINGS_FILE).read_text()
    assert "8 mirrored copies" in timings.settings and "step size 0.5" in timings.settings
    assert main([*arguments[:3], "--device", "cpu"]) == 1
    assert "are for measuring" in capsys.readouterr().err


def test_without_weights_or_scans_one_sentence_says_so(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(folds=0)
    with pytest.raises(DataError, match="at least one scan"):
        measure_scans(run.parent, tmp_path / "raw" / NAME)
    make_raw(tmp_path)
    with pytest.raises(RunError, match="no run has trained weights"):
        measure_scans(run.parent, tmp_path / "raw" / NAME)


def test_a_stray_file_in_imagesun_matters_to_nobody_who_needs_labelled_scans(tmp_path: Path) -> None:
    raw = make_raw(tmp_path)
    shutil.copy(raw / "imagesTr" / "case_0_0000.nii.gz", raw / "imagesTr" / "case_1_0000.nii.gz")
    shutil.copy(raw / "labelsTr" / "case_0.nii.gz", raw / "labelsTr" / "case_1.nii.gz")
    (raw / "imagesUn").mkdir()
    (raw / "imagesUn" / "notes.txt").write_text("none")
    assert _first_scan(raw).case == "case_0"
    trained = cast(Any, SimpleNamespace(plan=SimpleNamespace(dataset=NAME)))
    calibration, judged = _scans_for_int8(trained, ["case_0"], None, tmp_path)
    assert ([case.case for case in calibration], [case.case for case in judged]) == (["case_0"], ["case_1"])
    _tell_of_unlabelled(raw, DatasetDescription.load(raw / "dataset.json"), NAME)
