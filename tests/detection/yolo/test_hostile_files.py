"""Files of strangers, and files that were exchanged in a fold folder: nothing that they ask for is run, in no process.

A hostile file would create ``marker``; the tests look for it after every way that leads from a file to a loader.
"""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medkd.core.checkpoint import read_inert
from medkd.core.errors import MedkdError, RunError
from medkd.detection.job import DetectionJob
from medkd.detection.weights import read_detector_weights, start_from
from medkd.detection.yolo import YoloDetector, fit
from tests.detection.yolo.builders import ToyDistiller, calibrated, make, make_job

ROOT = Path(__file__).parents[3]


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


class System(Touch):
    """Runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.getoutput, (f"touch {self.path}",)


class Attribute(Touch):
    """Reaches a function through an attribute of a harmless class."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


class Loader(Touch):
    """Reaches a loader of a library that networks are made of, which would unpickle a second file."""

    def __reduce__(self) -> tuple[Any, ...]:
        second = Path(self.path).with_name("second.npy")
        np.save(second, np.array([Touch(Path(self.path))], dtype=object), allow_pickle=True)
        return np.load, (str(second), None, True)


class Layer(nn.Module):
    """A layer whose state asks for something."""

    def __init__(self, evil: Touch) -> None:
        super().__init__()
        self.evil = evil


HOSTILE = [Touch, System, Attribute, Loader]


@pytest.fixture(params=HOSTILE)
def evil(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Something hostile, and nothing has happened when the test is over."""
    marker = tmp_path / "marker"
    yield request.param(marker)
    assert not marker.exists()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> DetectionJob:
    """A job whose training was killed in its second epoch; nobody may change its folder."""
    job = make_job(tmp_path_factory.mktemp("killed"), make(), ToyDistiller(stop_at=1))
    with pytest.raises(InterruptedError):
        fit(job)
    return job


@pytest.fixture
def interrupted(killed: DetectionJob, tmp_path: Path) -> DetectionJob:
    """The same in a folder of the test's own, to be continued."""
    store, folder = (Path(shutil.copytree(path, tmp_path / path.name)) for path in (killed.store, killed.folder))
    return replace(killed, store=store, folder=folder, detector=make(seed=8), distiller=ToyDistiller(), resume=True)


def test_an_exchanged_last_file_is_not_looked_at(
    interrupted: DetectionJob, evil: Touch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ULTRALYTICS_SAFE_LOAD", "0")
    job = interrupted
    weights = job.folder / "ultralytics" / "weights"
    for name in ("last.pt", "best.pt"):
        torch.save({"epoch": 0, "ema": evil, "model": evil, "train_args": {"distill_model": "x.pt"}}, weights / name)
    fit(job)
    fit(job)  # finished: its files are tidied up


def test_a_hostile_state_is_refused(interrupted: DetectionJob, evil: Touch) -> None:
    job = interrupted
    (state,) = (job.folder / "ultralytics" / "weights").glob("state_*.pt")
    torch.save({"schema": 2, "epoch": 0, "network": evil}, state)
    with pytest.raises(RunError, match="could run code"):
        fit(job)


def test_hostile_files_of_former_versions_are_refused(interrupted: DetectionJob, evil: Touch) -> None:
    job = interrupted
    weights = job.folder / "ultralytics" / "weights"
    for path in weights.glob("state_*.pt"):
        path.unlink()
    for ema in (evil, Layer(evil), nn.Sequential(Layer(evil))):
        torch.save({"epoch": 0, "ema": ema}, weights / "last.pt")
        with pytest.raises(RunError):
            fit(job)


def test_hostile_weights_are_refused(tmp_path: Path, evil: Touch) -> None:
    network = make().network
    network.evil = evil
    for content in (evil, {"model": evil}, {"model": network}, {"model": Layer(evil)}, {"state_dict": {"a": evil}}):
        for name in ("best.pt", "start.pth"):
            torch.save(content, tmp_path / name)
            with pytest.raises(RunError):
                read_detector_weights(tmp_path / name)
            with pytest.raises(RunError):
                start_from(make(), tmp_path / name)


def test_a_teacher_from_elsewhere_cannot_run_code(tmp_path: Path, evil: Touch) -> None:
    from medkd.detection.tv.backbones import load_backbone_weights
    from tests.detection.tv.builders import make as build

    for name in ("r18.pth", "r18.pt"):
        torch.save({"state_dict": {"conv1.weight": evil}}, tmp_path / name)
        with pytest.raises(RunError):
            load_backbone_weights(build("retinanet_r18"), tmp_path / name)


def test_a_former_training_goes_on(interrupted: DetectionJob) -> None:
    """``last.pt`` with pickled networks beside weights and helpers, as medkd kept them before."""
    job = interrupted
    weights = job.folder / "ultralytics" / "weights"
    (path,) = weights.glob("state_*.pt")
    new = torch.load(path, weights_only=True)
    average = make().network.half()
    average.load_state_dict(new["ema"])
    last = {name: new[name] for name in ("epoch", "updates", "optimizer", "scaler", "best_fitness", "stopper")}
    torch.save({**last, "ema": average, "model": None, "train_args": {}}, weights / "last.pt")
    torch.save({"network": new["network"], "helpers": new["helpers"]}, path)
    fit(job)
    assert [call[:2] for call in job.distiller.calls] == [(1, 2), (1, 3)]
    assert torch.equal(job.distiller.calls[0][2], new["helpers"]["0.weight"])


def test_ultralytics_own_distillation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medkd.detection.yolo import trainer

    method = nn.Module()
    method.builtin, method.weight = True, 2.0  # type: ignore[assignment]
    distiller = SimpleNamespace(method=method, teacher=calibrated("yolov8n", seed=3))
    job = make_job(tmp_path, make(), distiller)
    begin = trainer.YoloTrainer._begin_epoch

    def stop(self: Any) -> None:
        if self.epoch == 1:
            raise InterruptedError
        begin(self)

    monkeypatch.setattr(trainer.YoloTrainer, "_begin_epoch", stop)
    with pytest.raises(InterruptedError):
        fit(job)
    monkeypatch.undo()
    (path,) = (job.folder / "ultralytics" / "weights").glob("state_*.pt")
    assert any("weight" in name for name in torch.load(path, weights_only=True)["helpers"])
    detector = make(seed=8)
    fit(replace(job, detector=detector, resume=True))
    assert isinstance(detector, YoloDetector) and (job.folder / "checkpoint_final.pt").exists()
    assert not list(job.folder.rglob("teacher.pt"))


def test_stray_caches_beside_the_images_are_not_read(tmp_path: Path, evil: Touch) -> None:
    job = make_job(tmp_path, make())
    job = replace(job, budget=replace(job.budget, epochs=1, iterations_per_epoch=1))
    for folder in (job.store, *(path for path in job.store.iterdir() if path.is_dir())):
        for name in ("images.cache", "labels.cache", "train.cache"):
            (folder / name).write_bytes(pickle.dumps(evil))
    for name in ("train.cache", "val.cache"):
        (job.folder / "ultralytics").mkdir(parents=True, exist_ok=True)
        (job.folder / "ultralytics" / name).write_bytes(pickle.dumps(evil))
    fit(job)


SUBPROCESS = """
import sys
from pathlib import Path
import ultralytics.nn.tasks  # the user's own program has imported it before medkd, with its loaders as they are
from medkd.core.errors import MedkdError
from medkd.detection.weights import read_detector_weights
from medkd.core.checkpoint import load_checkpoint
for path in sys.argv[1:]:
    for read in (read_detector_weights, load_checkpoint):
        try:
            read(Path(path))
        except MedkdError as error:
            print("refused", error)
"""


@pytest.mark.slow
def test_nothing_runs_in_another_process_either(tmp_path: Path) -> None:
    marker, paths = tmp_path / "marker", []
    for kind in HOSTILE:
        paths.append(tmp_path / f"{kind.__name__}.pt")
        torch.save({"model": kind(marker)}, paths[-1])
    command = [sys.executable, "-c", SUBPROCESS, *map(str, paths)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.count("refused") == 2 * len(HOSTILE)
    assert not marker.exists()


def test_files_that_lie_about_their_size_are_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "best.pt", tmp_path / "changed.pt"
    torch.save({"model": make().network}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    first = next(name for name in parts if "/data/" in name)
    for changed, method in (({first: b""}, zipfile.ZIP_STORED), ({}, zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(other, "w", method) as archive:
            for name, data in (parts | changed).items():
                archive.writestr(name, data)
        with pytest.raises(MedkdError):
            read_inert(other)
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), other)
    with pytest.raises(MedkdError):
        read_inert(other)
    other.write_bytes(b"no checkpoint")
    with pytest.raises(MedkdError, match="damaged"):
        read_inert(other)
