"""Several processes that train one detector: the same as one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import RunError
from medkd.core.run import LATEST
from medkd.detection.base import Detector, DetectorSpec
from medkd.detection.options import DetectorOptions
from medkd.detection.parts import check_shared
from medkd.detection.prepare import plan_and_preprocess_detection
from medkd.detection.task import DetectionTask
from medkd.detection.tv.dense_models import GFL
from medkd.detection.tv.faster_rcnn import FasterRCNN
from medkd.detection.tv.reppoints import RepPoints
from medkd.detection.yolo import YoloDetector
from medkd.training.logs import read_log
from medkd.training.run import rehearse
from tests.detection.builders import make_dataset
from tests.detection.ranks_worker import Training, run_all
from tests.detection.tv.builders import build_narrow
from tests.processes import processes, said, stop_after_first_epoch, train_together, wait

NAME = "Dataset502_Tiny"


_ONE_STEP = {"epochs": 2, "iterations_per_epoch": 1}  # which proposals remain, rounding decides after some steps
TRAININGS = [
    Training("retinanet", "retinanet_r18"),
    Training("reppoints", "reppoints_r18"),
    Training("faster", "faster_rcnn_r18", options=_ONE_STEP),
    Training("crosskd", "gfl_r18", "gfl_r18", "crosskd+rkd"),  # from towers, and among the boxes of a batch
    Training("scores", "faster_rcnn_r18", "faster_rcnn_r18", "kd+iou_aware+mimic", _ONE_STEP),
    Training("features", "atss_r18", "faster_rcnn_r18", "cwd", options={"epochs": 2}),  # after an epoch by one process
]
TEACHERS = ("gfl_r18", "faster_rcnn_r18")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A root where everything was trained by one process, and by two."""
    root = tmp_path_factory.mktemp("ranks")
    make_dataset(root, images=12, size=64, categories=("one", "two"), negatives=3)
    plan_and_preprocess_detection(502, root=root, workers=1, image_size=64)
    run_all([Training("", name, options={"tag": None}).arguments(root, "") for name in TEACHERS])
    run_all([training.arguments(root, "one") for training in TRAININGS])
    stop_after_first_epoch(lambda: run_all([TRAININGS[-1].arguments(root, "two")]))
    TRAININGS[-1].options["resume"] = True
    train_together("tests.detection.ranks_worker", [training.arguments(root, "two") for training in TRAININGS], root)
    return root


def _folder(root: Path, tag: str) -> Path:
    (found,) = (root / "results" / NAME).glob(f"*__{tag}")
    return found / "fold_0"


@pytest.mark.slow
@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.tag)
def test_two_processes_train_as_one_does(root: Path, training: Training) -> None:
    one, two = (_folder(root, f"{training.tag}-{side}") for side in ("one", "two"))
    for ours, theirs in zip(read_log(two), read_log(one), strict=True):
        assert ours.terms == pytest.approx(theirs.terms, rel=2e-5, abs=1e-6)
        assert ours.gradient_norms == pytest.approx(theirs.gradient_norms, rel=2e-4, abs=1e-6)
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=2e-4)
        assert ours.validation_score == pytest.approx(theirs.validation_score, abs=1e-3)
    a, b = (load_checkpoint(folder / LATEST) for folder in (one, two))
    for part in ("network", "method"):
        for key, value in a[part].items():
            assert torch.allclose(value.double(), b[part][key].double(), rtol=1e-3, atol=2e-4), key


def test_a_detector_without_a_shared_loss_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One from outside may have no more than ``losses``."""

    class Old(Detector):
        def losses(self, images: Tensor, boxes: Any, classes: Any) -> Any:
            return {}, None, None

    detector = Old()
    detector.spec = DetectorSpec("old", ("one",), 64)
    check_shared(detector, None)
    assert (
        FasterRCNN.can_be_shared()
        and YoloDetector.can_be_shared()
        and GFL.can_be_shared()
        and RepPoints.can_be_shared()
    )
    for name, value in {"RANK": 1, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(RunError, match=r"old has no loss of a batch.*start the command without torchrun"):
        check_shared(detector, None)
    builtin = SimpleNamespace(method=SimpleNamespace(builtin=True))
    with pytest.raises(RunError, match="ultralytics' own distillation, which works in one process, but 2"):
        check_shared(GFL.__new__(GFL), builtin)


def test_rows_and_lists_of_any_length_come_together(tmp_path: Path) -> None:
    code = """
import sys, torch
from types import SimpleNamespace
from medkd.training.ranks import current, together
with together(SimpleNamespace(in_several_processes=True), SimpleNamespace(device="cpu")):
    ranks = current()
    own = torch.arange(6.0).view(3, 2)[: 3 * ranks.number].requires_grad_()
    rows = ranks.gathered_rows(own)
    assert torch.equal(rows, torch.arange(6.0).view(3, 2)), rows
    if ranks.number:
        rows.sum().backward()
        assert torch.equal(own.grad, torch.ones(3, 2))
    nothing = ranks.gathered_rows(torch.zeros(0, 4))
    assert nothing.shape == (0, 4)
    lists = [[torch.zeros(0), torch.ones(2)], [torch.full((3,), 2.0), torch.zeros(0)]]
    found = ranks.gathered_lists(lists[ranks.number])
    assert [len(one) for one in found] == [0, 2, 3, 0] and float(found[2][2]) == 2.0
"""
    log = tmp_path / "log"
    with processes(["-c", code], log) as started:
        assert wait(started) == [0, 0], said(log)


def test_the_processes_of_a_machine_share_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 cores: 12 loader processes for one process, three of the four cores of each of four."""
    make_dataset(tmp_path, images=10, size=64, categories=("one", "two"), negatives=2)
    plan_and_preprocess_detection(502, root=tmp_path, workers=1, image_size=64)
    monkeypatch.setattr("medkd.core.workers.available_cores", lambda: 16)
    build_narrow(monkeypatch)

    def workers(asked: int | None = None) -> int:
        options = DetectorOptions(root=tmp_path, batch_size=8, device="cpu", workers=asked)
        lesson: Any = rehearse(DetectionTask(), 502, "retinanet_r18", 0, options, None, "none")[1]
        return int(lesson.family_job().workers)

    assert workers() == 12
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    assert workers() == 3 and workers(7) == 7
