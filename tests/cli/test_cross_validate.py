"""``medkd_cross_validate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medkd.cli.cross_validate import main
from tests.evaluation.folders import make_dataset, make_run


def test_merges_the_folds_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(tmp_path, 3)
    run = make_run(tmp_path, "unet_tiny__3d_fullres", "unet_tiny", 1.0, {0: [0], 1: [1, 2]})
    splits = tmp_path / "preprocessed" / "Dataset004_Test" / "splits_final.json"
    splits.parent.mkdir(parents=True)
    splits.write_text(json.dumps([{"train": ["a"], "val": ["b"]}] * 3))
    assert main(["4", run.name, "--root", str(tmp_path)]) == 0
    assert json.loads((run / "crossval" / "summary.json").read_text())["medkd"]["missing_folds"] == [2]
    out = capsys.readouterr().out
    assert "liver" in out
    assert "fold 1: Dice" in out
    assert main(["4", "nothing", "--root", str(tmp_path)]) == 1
    assert "not a medkd run" in capsys.readouterr().err
