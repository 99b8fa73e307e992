"""Training on a CUDA device: every precision, with and without labels, a start from the teacher, and few waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medkd.core.checkpoint import load_checkpoint
from medkd.core.files import read_json
from medkd.core.run import FINAL
from medkd.training.logs import read_log
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import train, train_distill
from medkd.training.trainer import Trainer
from tests.cuda_waits import waits
from tests.training.unlabelled_builders import make_mixed

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
MOST_WAITS = {"bf16": 0, "fp32": 0, "fp16": 1}  # the scaler asks whether the gradients are finite
TEACHER = "plain_unet"


def _options(root: Path, **changes: Any) -> TrainOptions:
    values: dict[str, Any] = {"root": root, "epochs": 2, "iterations_per_epoch": 5, "workers": 0, "device": "cuda"}
    return TrainOptions(**{**values, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with labelled and unlabelled cases, and a teacher for fold 0, trained on the device."""
    root = tmp_path_factory.mktemp("cuda")
    make_mixed(root)
    train(900, TEACHER, 0, _options(root, iterations_per_epoch=30))
    return root


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Where each step after the first epoch waited."""
    found: list[list[str]] = []
    plain = Trainer.step

    def counted(self: Trainer, batch: Any) -> Any:
        if self.epoch == 0:
            return plain(self, batch)
        with waits() as places:
            terms = plain(self, batch)
        found.append(places)
        return terms

    monkeypatch.setattr(Trainer, "step", counted)
    return found


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("kd", {"targets": "cached"}),
        ("kd+dml", {"targets": "cached", "labels": "none"}),
        ("dist", {}),
        ("none", {"init": "teacher"}),
        ("acf_bckd", {"unlabelled_share": 0.5}),
    ],
)
def test_students_train_without_waiting(
    trained: Path, waited: list[list[str]], precision: str, method: str, settings: dict[str, Any]
) -> None:
    tag = f"{method}_{precision}".replace("+", "_")
    options = _options(trained, precision=precision, width_divisor=2, tag=tag, **settings)
    folder = train_distill(900, TEACHER, "plain_unet", method, 0, options)
    weights = load_checkpoint(folder / FINAL)["network"]
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    assert len(read_log(folder)) == 2
    assert read_json(folder / "validation" / "summary.json")["metric_per_case"]
    most = MOST_WAITS[precision] + (1 if method == "acf_bckd" else 0)
    steps = waited[1:]  # the first step after a checkpoint's writing may still wait for it
    assert steps and all(len(places) <= most for places in steps), steps
