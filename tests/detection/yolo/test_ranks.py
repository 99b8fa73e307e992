"""Several processes that train one YOLO detector: the same as one, but for what augmentation draws."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import medkd.detection.yolo.trainer as yolo_trainer
from medkd.core.checkpoint import load_checkpoint
from medkd.core.files import read_json, write_json
from medkd.core.run import BEST, FINAL
from medkd.detection.prepare import plan_and_preprocess_detection
from medkd.detection.yolo.data import EpochSampler, PartSampler, StoreDataset
from medkd.detection.yolo.fold import write_data
from medkd.detection.yolo.offline import quiet, unchanged_process
from medkd.detection.yolo.settings import settings_of
from medkd.detection.yolo.trainer import YoloTrainer
from medkd.training.logs import read_log
from medkd.training.ranks import Ranks
from tests.detection.builders import make_dataset
from tests.detection.ranks_worker import Training, run_all
from tests.detection.yolo.builders import make, make_job
from tests.processes import LIMIT, train_together

NAME = "Dataset502_Tiny"
TRAININGS = [
    Training("alone", "yolo26n", options={"iterations_per_epoch": 2}),
    Training(
        "taught", "yolov8n", "yolov8n", "kd+mimic", {"epochs": 2, "iterations_per_epoch": 2}
    ),  # after an epoch by one process
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A root where everything was trained by one process, and by two, on images that are not augmented."""
    root = tmp_path_factory.mktemp("ranks")
    make_dataset(root, images=10, size=64, categories=("one", "two"), negatives=2)
    plan_and_preprocess_detection(502, root=root, workers=1, image_size=64)
    plan = root / "preprocessed" / NAME / "plans.json"
    content = read_json(plan)
    content["augmentation"] = {name: type(value)(0) for name, value in content["augmentation"].items()}
    write_json(plan, content)
    run_all([Training("", "yolov8n", options={"tag": None, "iterations_per_epoch": 1}).arguments(root, "")])
    run_all([training.arguments(root, "one") for training in TRAININGS])
    _interrupted(TRAININGS[-1].arguments(root, "two"))
    TRAININGS[-1].options["resume"] = True
    train_together("tests.detection.ranks_worker", [training.arguments(root, "two") for training in TRAININGS], root)
    return root


def _interrupted(training: dict[str, Any]) -> None:
    """Stop a training after its first epoch."""
    begin = YoloTrainer._begin_epoch

    def stop(self: YoloTrainer) -> None:
        if self.epoch == 1:
            raise KeyboardInterrupt
        begin(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(YoloTrainer, "_begin_epoch", stop)
        run_all([training])


def _folder(root: Path, tag: str) -> Path:
    (found,) = (root / "results" / NAME).glob(f"*__{tag}")
    return found / "fold_0"


@pytest.mark.slow
@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.tag)
def test_two_processes_train_as_one_does(root: Path, training: Training) -> None:
    one, two = (_folder(root, f"{training.tag}-{side}") for side in ("one", "two"))
    for ours, theirs in zip(read_log(two), read_log(one), strict=True):
        assert ours.terms == pytest.approx(theirs.terms, rel=1e-4, abs=1e-6)
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-3)
        assert ours.validation_score == pytest.approx(theirs.validation_score, abs=1e-3)
    for name in (FINAL, BEST):
        a, b = (load_checkpoint(folder / name)["network"] for folder in (one, two))
        for key, value in a.items():
            torch.testing.assert_close(b[key].double(), value.double(), rtol=1e-3, atol=1e-4, msg=key)
    listed = []
    for folder in (one, two):
        listed.append(sorted({path.name for path in folder.rglob("*") if not path.name.startswith("events.")}))
    assert listed[0] == listed[1]


@pytest.mark.slow
def test_the_network_is_written_for_programs_without_medkd(root: Path) -> None:
    from ultralytics.nn.tasks import torch_safe_load

    for name in ("best.pt", "last.pt"):
        path = _folder(root, "taught-two") / "ultralytics" / "weights" / name
        network = torch_safe_load(path, safe_only=True)[0]["model"]
        assert type(network).__name__ == "DetectionModel" and b"medkd" not in path.read_bytes()


def test_ultralytics_believes_that_it_is_alone() -> None:
    """Also in a process of torchrun, whose variables stay."""
    code = """
import os, sys
os.environ.update(RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")
from medkd.detection.yolo.library import check_single, engine
check_single()
assert (engine.RANK, engine.LOCAL_RANK, os.environ["RANK"], os.environ["WORLD_SIZE"]) == (-1, -1, "1", "2")
from medkd.core.errors import RunError
engine.RANK = 1
try:
    check_single()
except RunError as error:
    sys.exit("import medkd first" not in str(error))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=LIMIT).returncode == 0


def test_each_process_has_its_part_of_every_batch_wherever_the_pass_begins() -> None:
    whole, parts = EpochSampler(lambda epoch: list(range(7)), 8), []
    for number in range(2):
        sampler = PartSampler(EpochSampler(lambda epoch: list(range(7)), 8), 4, range(2 * number, 2 * number + 2))
        assert len(sampler) == 4
        sampler.go_to(1)
        parts.append(list(sampler))
    whole.go_to(1)
    assert list(whole) == [*parts[0][:2], *parts[1][:2], *parts[0][2:], *parts[1][2:]]


def test_the_first_process_validates_no_more_images_at_once_than_it_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice its part of a batch, on the rectangles of one process; the others, which never look, load nothing."""
    job = make_job(tmp_path, make(), negatives=0)
    job = replace(job, val=job.train + job.val)
    asked: list[tuple[int, int]] = []

    def noted(dataset: StoreDataset, batch: int, workers: int, **_: Any) -> None:
        assert len(dataset.batch_shapes) == 2  # of four and two images
        asked.append((batch, workers))

    monkeypatch.setattr(yolo_trainer, "build_dataloader", noted)
    with unchanged_process(), quiet():
        trainer = YoloTrainer(job, settings_of(job, write_data(job, tmp_path), tmp_path))
    trainer.args.workers = 1  # ultralytics takes none on the CPU
    for ranks in (Ranks(), Ranks(count=2), Ranks(number=1, count=2)):
        trainer.ranks = ranks
        trainer.get_dataloader(trainer.data["val"], 2 * job.budget.batch_size, mode="val")
    assert asked == [(4, 2), (2, 2), (2, 0)]
