"""Left and right, through the commands' functions: scans stored in two ways, and structures that differ by side only.

Measured with these cases and 600 steps (Dice of fold 0): scans stored half in RAS, half in LAS 0.40, turned to RAS
first 0.99; mirrored along every axis 0.52, not at all 0.99. With the 240 steps of the tests, what can be learnt has
0.97 and 0.96.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medkd
from medkd.core.dataset import DatasetDescription
from medkd.core.files import read_json
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.io.orientation import axis_code, turn, turn_geometry
from medkd.io.volumes import read_label, write_volume
from tests.faults.tally import is_full

pytestmark = pytest.mark.slow
whole = pytest.mark.skipif(not is_full(), reason="minutes of training for what is not learnt: MEDKD_FAULTS=full")
SHAPE = (12, 20, 24)
GRID = Geometry.from_spacing(SHAPE, (3.0, 2.0, 2.0))  # RAS
ORGANS = {1: ((0.0, 0.1, 0.45), (0.5, 0.3, 0.25)), 2: ((0.0, 0.1, -0.45), (0.5, 0.3, 0.25))}  # right, left
ORGANS[3] = ((0.0, 0.55, 0.0), (0.5, 0.18, 0.2))
BRIGHTNESS = {1: 200, 2: 200, 3: 300}


def _body(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and label map of a body with two equal organs beside each other and one in front."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    image, label = np.where((x / 0.9) ** 2 + (y / 0.85) ** 2 < 1, 100.0, 0.0), np.zeros(SHAPE, np.uint8)
    for value, (centre, radius) in ORGANS.items():
        moved = np.array(centre) + rng.uniform(-1, 1, 3) * (0.2, 0.08, 0.08)
        parts = [((axis - c) / r) ** 2 for axis, c, r in zip((z, y, x), moved, radius, strict=True)]
        inside = np.sum(parts, axis=0) < 1
        image[inside], label[inside] = BRIGHTNESS[value], value
    return (image + rng.normal(0, 15, SHAPE)).astype(np.float32), label


def _write(folder: Path, part: str, case: str, seed: int, code: str) -> None:
    grid = turn_geometry(GRID, code)
    for name, array in zip((f"images{part}/{case}_0000", f"labels{part}/{case}"), _body(seed), strict=True):
        write_volume(folder / f"{name}.nii.gz", np.ascontiguousarray(turn(array, "RAS", code)), grid)


def _dice_of_fold_0(root: Path, codes: tuple[str, ...], **wishes: Any) -> float:
    raw = root / "raw" / "Dataset001_Sides"
    for index in range(8):
        _write(raw, "Tr", f"c{index}", index, codes[index % len(codes)])
    for index, code in enumerate(("RAS", "LAS")):
        _write(raw, "Ts", f"t{index}", 1000 + index, code)
    labels = LabelSpec.from_names(["right", "left", "front"])
    DatasetDescription(channel_names=("MR",), labels=labels, num_training=8).save(raw / "dataset.json")
    medkd.plan_and_preprocess(1, root=root, configurations=["3d_fullres"], **wishes)
    settings = {"epochs": 8, "iterations_per_epoch": 30, "batch_size": 2, "width_divisor": 4, "workers": 0}
    fold = medkd.train(1, "plain_unet", 0, root=root, device="cpu", **settings)
    return float(read_json(fold / "validation" / "summary.json")["foreground_mean"]["Dice"])


def test_a_mixed_data_set_is_learnt_where_it_is_turned_and_predictions_turn_back(tmp_path: Path) -> None:
    assert _dice_of_fold_0(tmp_path, ("RAS", "LAS"), mirror_axes=(0, 1), orientation="RAS") > 0.9
    raw, out = tmp_path / "raw" / "Dataset001_Sides", tmp_path / "out"
    run = next((tmp_path / "results" / "Dataset001_Sides").iterdir())
    medkd.predict(raw / "imagesTs", out, run, device="cpu")
    for case, code in (("t0", "RAS"), ("t1", "LAS")):
        found, expected = (read_label(folder / f"{case}.nii.gz") for folder in (out, raw / "labelsTs"))
        assert axis_code(found.geometry) == code and not found.geometry.differences(expected.geometry)
        for value in ORGANS:
            both = np.logical_and(found.array == value, expected.array == value).sum()
            assert 2 * both / ((found.array == value).sum() + (expected.array == value).sum()) > 0.85


@whole
def test_a_mixed_data_set_that_is_not_turned_is_not_learnt(tmp_path: Path) -> None:
    assert _dice_of_fold_0(tmp_path, ("RAS", "LAS"), mirror_axes=(0, 1)) < 0.8


@pytest.mark.parametrize(("axes", "low", "high"), [((), 0.9, 1.0), pytest.param(None, 0.0, 0.8, marks=whole)])
def test_structures_that_differ_by_side_are_learnt_without_mirroring_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, axes: tuple[int, ...] | None, low: float, high: float
) -> None:
    assert low <= _dice_of_fold_0(tmp_path, ("RAS",), mirror_axes=axes) <= high
    warned = [record.getMessage() for record in caplog.records if "mirror images of each other" in record.getMessage()]
    assert len(warned) == (axes is None) and all("along axis 2: right and left" in text for text in warned)
