"""A student as a model folder of nnU-Net v2: medkd reads it back, and stock nnU-Net predicts the same from it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import RunError
from medkd.exporting.export import export_model
from medkd.inference.predictor import Predictor
from medkd.io.volumes import read_image, read_label
from medkd.models.base import open_model
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import train
from tests.training.builders import make_dataset

OLD = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0"
STUDENT = OLD / "plain_unet_w2__3d_fullres__kd+at__from_plain_unet"
NNUNET = "MEDKD_NNUNET_PYTHON"
"""Environment variable: the Python of an environment with nnunetv2."""


def test_the_folder_is_read_back_as_the_same_model(tmp_path: Path) -> None:
    export_model(STUDENT, tmp_path / "out", format="nnunet")
    model, ours = open_model(tmp_path / "out"), open_model(STUDENT).describe()
    theirs = model.describe()
    assert model.kind == "nnunet" and model.folds() == ("0",)
    assert theirs.labels == ours.labels and theirs.channels == ours.channels and theirs.patch_size == ours.patch_size
    for key in ("spacing", "normalization", "use_mask_for_norm", "resampling", "crop"):
        assert getattr(theirs.configuration, key) == getattr(ours.configuration, key)
    image, geometry = read_image([OLD / "scan_0000.nii.gz"], "scan")
    found = Predictor.from_run(tmp_path / "out", None, "cpu").predict_case(image, geometry, "scan")
    assert np.mean(found != read_label(STUDENT / "expected.nii.gz").array) < 1e-3


def test_stock_nnunet_predicts_the_same(tmp_path: Path) -> None:
    python = os.environ.get(NNUNET)
    if not python:
        pytest.skip(f"set {NNUNET} to the Python of an environment with nnunetv2")
    export_model(STUDENT, tmp_path / "out", format="nnunet")
    (tmp_path / "scans").mkdir()
    shutil.copy(OLD / "scan_0000.nii.gz", tmp_path / "scans")
    code = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as main; main()"
    places = {"scans": tmp_path / "scans", "predictions": tmp_path / "predicted", "THIS_FOLDER": tmp_path / "out"}
    _, *arguments = [str(places.get(word, word)) for word in _command_of(tmp_path / "out")]
    command = [python, "-c", code, *arguments, "-device", "cpu", "-npp", "1", "-nps", "1"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)
    assert done.returncode == 0, done.stderr
    found = read_label(tmp_path / "predicted" / "scan.nii.gz").array
    assert found.any() and np.mean(found != read_label(STUDENT / "expected.nii.gz").array) < 1e-3


def _command_of(folder: Path) -> list[str]:
    """The words of nnU-Net's command on the card."""
    (line,) = (line for line in (folder / "README.md").read_text().splitlines() if line.startswith("nnUNetv2_"))
    return line.split()


def test_the_card_names_the_folds_that_are_there(tmp_path: Path) -> None:
    """nnU-Net's own default is five folds, without which its command ends in a traceback."""
    export_model(STUDENT, tmp_path / "out", format="nnunet")
    command = _command_of(tmp_path / "out")
    assert command[command.index("-f") + 1 :] == ["0"]


def test_networks_that_nnunet_cannot_build_are_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    options = TrainOptions(
        root=tmp_path, epochs=1, iterations_per_epoch=1, workers=0, device="cpu", validate=False, batch_size=2
    )
    fold = train(900, "unet_tiny", 0, options)
    with pytest.raises(
        RunError, match=r"nnU-Net builds its own planned U-Nets only, not .*; export with --format onnx"
    ):
        export_model(fold.parent, tmp_path / "out", format="nnunet")
    assert not (tmp_path / "out").exists()
