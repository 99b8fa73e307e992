"""Trackers see what a training does, and never what they should not; one that fails stops nothing."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import medkd
from medkd.core.errors import RunError
from medkd.training import trackers
from medkd.training.logs import read_log, scalars
from medkd.training.tracking import TRACKING_FILE, Tracking, portable
from tests.training.builders import NAME, make_dataset

TINY: dict[str, Any] = {
    "epochs": 2,
    "iterations_per_epoch": 1,
    "batch_size": 2,
    "patch_size": (16, 16, 16),
    "workers": 0,
    "device": "cpu",
    "save_every": 1,
}


class Notes:
    """A pretended wandb: runs by their ids, with what they were told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: dict[str, SimpleNamespace] = {}
        self.begun: list[dict[str, Any]] = []
        self.failing: set[str] = set()
        module: Any = ModuleType("wandb")
        module.init, module.Settings = self.init, lambda **settings: settings
        monkeypatch.setitem(sys.modules, "wandb", module)
        for name in ("WANDB_PROJECT", "WANDB_DIR"):
            monkeypatch.delenv(name, raising=False)

    def _maybe(self, what: str) -> None:
        if what in self.failing:
            raise ConnectionError(f"no network for {what}\nmore")

    def init(self, **given: Any) -> Any:
        self._maybe("init")
        self.begun.append(given)
        run = self.runs.setdefault(given["id"], SimpleNamespace(id=given["id"], logged={}, summary={}, ends=[]))

        def log(values: dict[str, float], step: int) -> None:
            self._maybe("log")
            assert step not in run.logged
            run.logged[step] = values

        run.log = log
        run.finish = lambda exit_code: run.ends.append(exit_code)
        return run


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Notes:
    return Notes(monkeypatch)


def test_a_training_is_shown_with_its_settings_epochs_and_scores(tmp_path: Path, wandb: Notes) -> None:
    make_dataset(tmp_path)
    folder = medkd.train(NAME, "unet_tiny", 0, root=tmp_path, track="wandb", validate=False, **TINY)
    (given,), (run,) = wandb.begun, wandb.runs.values()
    assert (given["project"], given["group"]) == (f"medkd-{NAME}", "unet_tiny__3d_fullres")
    assert given["name"] == "unet_tiny__3d_fullres/fold_0"
    assert given["config"]["budget"]["epochs"] == 2 and given["config"]["fold"] == "0"
    assert str(tmp_path) not in json.dumps(given["config"])
    assert run.logged == {record.epoch: scalars(record) for record in read_log(folder)}
    assert set(run.logged) == {0, 1} and run.ends == [0]
    assert given["settings"]["x_disable_meta"] and given["settings"]["disable_git"]


_ASKED = """
import os, sys
from medkd.training.trackers import Shown, WandbTracker
from pathlib import Path
import medkd.training.trackers as trackers
trackers._PATIENCE = 2.0
folder = Path(sys.argv[1])
try:
    WandbTracker().open(Shown(project="p", group="g", name="n", config={}, folder=folder), None)
except Exception as error:
    print(f"ended: {type(error).__name__}: {error}")
"""


def test_a_terminal_that_does_not_answer_the_question_for_a_key_is_given_up(tmp_path: Path) -> None:
    """The real package, in a terminal of its own, without a key: it asks, and nobody is there."""
    pytest.importorskip("wandb")
    pty = pytest.importorskip("pty")
    own, theirs = pty.openpty()
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    env = {**kept, "HOME": str(tmp_path), "TERM": "xterm", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", _ASKED, str(tmp_path)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=tmp_path) as process:
        os.close(theirs)
        said = b""
        try:
            while block := os.read(own, 4096):
                said += block
        except OSError:  # the terminal closed
            pass
        assert process.wait(90) == 0
    os.close(own)
    text = said.decode(errors="replace")
    assert "ended: " in text and "You chose" not in text, text


def test_nothing_is_sent_unless_it_is_asked_for(tmp_path: Path, wandb: Notes) -> None:
    make_dataset(tmp_path)
    folder = medkd.train(NAME, "unet_tiny", 0, root=tmp_path, validate=False, **TINY)
    assert not wandb.begun and not (folder / TRACKING_FILE).exists()


def test_a_continued_training_goes_on_in_its_run_and_no_epoch_comes_twice(
    tmp_path: Path, wandb: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path)
    settings = {**TINY, "epochs": 3, "save_every": 10, "root": tmp_path, "track": "wandb", "validate": False}
    told = Tracking.epoch

    def kill(self: Tracking, record: Any) -> None:
        told(self, record)
        if record.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(Tracking, "epoch", kill)
        medkd.train(NAME, "unet_tiny", 0, **settings)
    (run,) = wandb.runs.values()
    assert set(run.logged) == {0, 1} and run.ends == [1]
    medkd.train(NAME, "unet_tiny", 0, resume=True, **settings)  # from epoch 0: nothing was saved
    assert len(wandb.runs) == 1 and set(run.logged) == {0, 1, 2} and run.ends == [1, 0]
    medkd.train(NAME, "unet_tiny", 0, overwrite=True, **settings)
    assert len(wandb.runs) == 2


def test_a_tracker_that_fails_is_one_warning_and_is_told_later(
    tmp_path: Path, wandb: Notes, caplog: pytest.LogCaptureFixture
) -> None:
    make_dataset(tmp_path)
    settings = {**TINY, "epochs": 4, "root": tmp_path, "track": "wandb", "validate": False}
    for failing in ("init", "log"):
        wandb.failing = {failing}
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            folder = medkd.train(NAME, "unet_tiny", 0, overwrite=True, **settings)
        said = [record.getMessage() for record in caplog.records if "the training goes on" in record.getMessage()]
        assert len(said) == 1 and f"wandb failed (no network for {failing});" in said[0] and "\n" not in said[0]
        assert len(read_log(folder)) == 4 and (folder / "checkpoint_final.pt").exists()
    wandb.failing = set()
    medkd.train(NAME, "unet_tiny", 0, resume=True, **settings)
    assert set(list(wandb.runs.values())[-1].logged) == {0, 1, 2, 3}


def test_a_missing_package_is_one_sentence_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path)
    for name in ("wandb", "mlflow"):
        for module in (None, ModuleType(name)):  # a folder ./wandb in the way is a module without anything
            monkeypatch.setitem(sys.modules, name, module)
            with pytest.raises(RunError, match=rf"needs the package {name}, .*run pip install 'medkd\[{name}\]'"):
                medkd.train(NAME, "unet_tiny", 0, root=tmp_path, track=name, **TINY)
    assert not (tmp_path / "results").exists()
    with pytest.raises(RunError, match="--track must be one of wandb, mlflow, found 'neptune'"):
        medkd.train(NAME, "unet_tiny", 0, root=tmp_path, track="neptune", **TINY)


def test_folders_of_the_machine_are_not_told() -> None:
    told = portable(
        {
            "file": "/srv/data/weights.pt",
            "windows": r"C:\Users\me\best.pt",
            "several": "one of (/a/one, /b/two)",
            "plain": "3d_fullres",
            "share": "1/2",
        }
    )
    assert told == {
        "file": "weights.pt",
        "windows": "best.pt",
        "several": "one of (one, two)",
        "plain": "3d_fullres",
        "share": "1/2",
    }


@pytest.fixture
def mlflow_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    from mlflow import MlflowClient

    return MlflowClient((tmp_path / "mlruns").as_uri())


def test_mlflow_holds_a_student_and_its_scores(tmp_path: Path, mlflow_client: Any) -> None:
    make_dataset(tmp_path)
    settings = {**TINY, "root": tmp_path, "track": "mlflow"}
    medkd.train(NAME, "unet_tiny", 0, validate=False, **settings)
    folder = medkd.train_distill(NAME, "unet_tiny", "unet_tiny", "kd", 0, validate=False, **settings)
    (folder / "validation").mkdir()
    summary = {"foreground_mean": {"Dice": 0.25}, "mean": {}}
    (folder / "validation" / "summary.json").write_text(json.dumps(summary))
    medkd.train_distill(NAME, "unet_tiny", "unet_tiny", "kd", 0, validate=False, resume=True, **settings)
    experiment = mlflow_client.get_experiment_by_name(f"medkd-{NAME}")
    runs = {run.info.run_name: run for run in mlflow_client.search_runs([experiment.experiment_id])}
    assert len(runs) == 2
    student = runs[f"{folder.parent.name}/fold_0"]
    assert student.info.status == "FINISHED" and student.data.tags["medkd.run"] == folder.parent.name
    assert student.data.params["method"] == "kd" and student.data.params["network.name"] == "unet_tiny"
    assert not [value for value in student.data.params.values() if str(tmp_path) in value]
    points = mlflow_client.get_metric_history(student.info.run_id, "loss/train")
    expected = [(record.epoch, pytest.approx(record.train_loss)) for record in read_log(folder)]
    assert [(point.step, point.value) for point in points] == expected
    assert student.data.metrics["final/Dice"] == 0.25


def test_a_run_that_was_deleted_in_mlflow_begins_anew(tmp_path: Path, mlflow_client: Any) -> None:
    shown = trackers.Shown(project="p", group="g", name="g/fold_0", config={"a": {"b": 1}}, folder=tmp_path)
    first = trackers.MlflowTracker().open(shown, None)
    assert trackers.MlflowTracker().open(shown, first) == first
    mlflow_client.delete_run(first)
    assert trackers.MlflowTracker().open(shown, first) != first
    assert trackers.MlflowTracker().open(shown, "0" * 32) not in (first, "0" * 32)
