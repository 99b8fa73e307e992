"""Weights that attack: refused in one sentence, within seconds and two gigabytes, and nothing of them runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkd.core.checkpoint import load_checkpoint, read_inert
from medkd.detection.weights import read_detector_weights
from medkd.detection.yolo.checkpoints import read_state
from medkd.models.base import open_model
from tests.faults.bombs import WEIGHTS, Reader, check
from tests.faults.tally import Tally
from tests.training.test_imported_teacher import describe

LOADERS: dict[str, Reader] = {
    "checkpoint": load_checkpoint,
    "inert": read_inert,
    "detector weights": read_detector_weights,
    "described network": lambda path: open_model(describe(path.parent, weights=path.name)).load(),
    "YOLO state": read_state,
}


HARMLESS = {"a tensor of 4 TB", "a pickle behind a sound file", "a list that holds itself", "a TorchScript", "nothing"}


@pytest.mark.parametrize("loader", LOADERS)
def test_weights_that_attack(loader: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tally = Tally(f"hostile: {loader}", 0, [])
    for number, (name, make) in enumerate(WEIGHTS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "last.pt"
        make(path)
        check(tally, LOADERS[loader], path, name, may_be_read=name in HARMLESS)
    tally.finish(request)
