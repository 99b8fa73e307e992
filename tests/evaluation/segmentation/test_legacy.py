"""The legacy metric has the original's defects, says how much it dropped, and stands beside the correct scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.cli.evaluate import main as evaluate
from medkd.core.dataset import DatasetDescription
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.evaluation.segmentation.legacy import legacy_case, legacy_scores
from medkd.io.volumes import write_volume


def test_the_legacy_metric_is_monais_without_spacing_and_drops_what_is_absent() -> None:
    from monai.metrics import compute_hausdorff_distance

    rng = np.random.default_rng(0)
    reference = np.zeros((9, 12, 12), np.int16)
    reference[2:7, 3:9, 2:8] = 1
    reference[7:9, 9:12, 9:12] = 3
    prediction = np.where(
        rng.random(reference.shape) < 0.05, 1, np.roll(np.where(reference == 3, 0, reference), 1, 0)
    ).astype(np.int16)
    prediction[0, 0, 0] = 2
    dice, hd95 = legacy_case(prediction, reference, LabelSpec.from_names(["a", "b", "c"]), (1.0, 1.0, 1.0))
    masks = [torch.from_numpy(array == 1)[None, None].float() for array in (prediction, reference)]
    assert hd95[0] == pytest.approx(float(compute_hausdorff_distance(*masks, include_background=True, percentile=95)))
    assert np.isnan(dice[1]) and dice[2] == 0 and np.isnan(hd95[1]) and np.isnan(hd95[2])
    assert dice[0] == pytest.approx(
        200 * ((prediction == 1) & (reference == 1)).sum() / ((prediction == 1).sum() + (reference == 1).sum())
    )


def legacy_folders(folder: Path) -> None:
    """Case a: prediction shifted by 2 slices of 3 mm, structure 2 missed. Case b: both absent but for an invented
    structure 2.
    """
    grid = Geometry.from_spacing((12, 8, 8), (3.0, 1.0, 1.0))
    label = np.zeros(grid.shape, np.uint8)
    label[2:6, 2:6, 2:6] = 1
    moved = np.roll(label, 2, 0)
    label[10, 6, 6] = 2
    write_volume(folder / "ref/a.nii.gz", label, grid)
    write_volume(folder / "pred/a.nii.gz", moved, grid)
    empty = np.zeros(grid.shape, np.uint8)
    write_volume(folder / "ref/b.nii.gz", empty, grid)
    empty[0, 0, 0] = 2
    write_volume(folder / "pred/b.nii.gz", empty, grid)


def test_legacy_scores_of_a_folder_count_voxels_and_what_was_dropped(tmp_path: Path) -> None:
    legacy_folders(tmp_path)
    labels = LabelSpec.from_names(["x", "y"])
    scores = legacy_scores(tmp_path / "pred", tmp_path / "ref", labels, ["a", "b"])
    assert (scores.dice, scores.hd95) == (25.0, 2.0)  # case a: Dice (50 + 0) / 2; case b has none
    assert (scores.dice_dropped, scores.hd95_dropped, scores.pairs) == (2, 3, 4)
    assert legacy_scores(tmp_path / "pred", tmp_path / "ref", labels, ["a", "b"], voxel_mm=(2.0, 1.5, 1.5)).hd95 == 3.0
    assert legacy_scores(tmp_path / "pred", tmp_path / "ref", labels, ["b"]).dice is None


def test_the_command_writes_the_legacy_metric_beside_the_correct_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    legacy_folders(tmp_path)
    DatasetDescription(channel_names=("CT",), labels=LabelSpec.from_names(["x", "y"]), num_training=2).save(
        tmp_path / "dataset.json"
    )
    folders = [str(tmp_path / "pred"), str(tmp_path / "ref")]
    assert evaluate([*folders, "--legacy"]) == 0
    assert "legacy metric: Dice 25.00 %, HD95 2.00 voxels" in capsys.readouterr().out
    summary = json.loads((tmp_path / "pred/summary.json").read_text())
    assert summary["medkd"]["legacy"]["hd95"] == 2.0 and summary["metric_per_case"][0]["metrics"]["1"]["HD95"] == 6.0
    assert evaluate(folders) == 0
    assert "legacy" not in json.loads((tmp_path / "pred/summary.json").read_text())["medkd"]
    assert evaluate([*folders, "--legacy", "1", "2"]) == 1
