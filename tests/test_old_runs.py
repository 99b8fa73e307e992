"""Run folders that medkd 0.1.0 (commit b833980) wrote: they predict the same, go on where they stopped, and teach."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medkd.core.checkpoint import load_checkpoint
from medkd.inference.folder import predict_folder
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import train, train_distill
from tests.training.builders import NAME, make_dataset

OLD = Path(__file__).parent / "fixtures" / "run_of_0_1_0"
ALONE = "plain_unet__3d_fullres"
DISTILLED = "plain_unet_w2__3d_fullres__kd+at__from_plain_unet"
BUDGET = {
    "epochs": 2,
    "iterations_per_epoch": 60,
    "workers": 0,
    "device": "cpu",
    "save_every": 1,
    "learning_rate": 0.05,
    "validate": False,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The data set that the old runs were trained on, and a copy of them."""
    make_dataset(tmp_path)
    for run in (ALONE, DISTILLED):
        shutil.copytree(OLD / run, tmp_path / "results" / NAME / run)
    return tmp_path


@pytest.mark.parametrize("run", [ALONE, DISTILLED])
def test_an_old_run_predicts_what_it_predicted(root: Path, run: str) -> None:
    predict_folder(OLD / "scan_0000.nii.gz", root / "out", root / "results" / NAME / run, folds=[0], device="cpu")
    found = np.asarray(nibabel.load(root / "out" / "scan.nii.gz").dataobj)
    expected = np.asarray(nibabel.load(OLD / run / "expected.nii.gz").dataobj)
    assert len(np.unique(expected)) > 1
    assert np.mean(found != expected) < 1e-3  # another processor may round a voxel on the border differently


def test_an_old_run_that_was_killed_goes_on_and_ends_like_an_unbroken_one(root: Path) -> None:
    folder = train(900, "plain_unet", 1, TrainOptions(root=root, resume=True, **BUDGET))
    found = load_checkpoint(folder / "checkpoint_final.pt")["network"]
    expected = load_checkpoint(OLD / "unbroken_fold_1.pt")["network"]
    stopped = load_checkpoint(OLD / ALONE / "fold_1" / "checkpoint_latest.pt")["network"]
    moved = sum(float((expected[name] - stopped[name]).norm()) for name in expected)
    apart = sum(float((expected[name] - found[name]).norm()) for name in expected)
    assert moved > 1.0
    assert apart < 0.2 * moved  # equal on the machine that made it; other processors round differently


def test_an_old_run_teaches(root: Path) -> None:
    options = TrainOptions(root=root, width_divisor=4, **{**BUDGET, "epochs": 1, "iterations_per_epoch": 2})
    folder = train_distill(900, "plain_unet", "plain_unet", "kd", 0, options)
    assert all(
        torch.isfinite(value).all() for value in load_checkpoint(folder / "checkpoint_final.pt")["network"].values()
    )
