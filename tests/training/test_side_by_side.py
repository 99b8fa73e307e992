"""Several methods side by side: each run is what it is alone, weight by weight."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import medkd
from medkd.cli.train_distill import main
from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import MedkdError, MethodError, RunError
from medkd.core.run import FINAL, LATEST
from medkd.distillation.shared import SharedTeacher
from medkd.training import several_methods
from medkd.training.options import TrainOptions
from medkd.training.segmentation_lesson import SegmentationLesson
from medkd.training.segmentation_task import train, train_distill, train_side_by_side
from medkd.training.trainer import Trainer
from tests.training.builders import NAME, make_dataset


def _options(root: Path, **changes: Any) -> TrainOptions:
    values: dict = {"root": root, "epochs": 2, "iterations_per_epoch": 3, "workers": 0, "device": "cpu", **changes}
    return TrainOptions(**{"width_divisor": 2, "validate": False, "save_every": 1, **values})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of a teacher."""
    place = tmp_path_factory.mktemp("root")
    make_dataset(place)
    for fold in (0, 1):
        train(900, "plain_unet", fold, _options(place, iterations_per_epoch=6, width_divisor=1))
    return place


def _same(first: Path, second: Path, file: str = LATEST) -> bool:
    a, b = (load_checkpoint(folder / file) for folder in (first, second))
    parts = [(a[part], b[part]) for part in ("network", "method") if part in a]
    return all(x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x) for x, y in parts)


METHODS = ("none", "kd+at", "crosskd", "ensemble")


@pytest.mark.slow
def test_every_run_has_the_weights_and_losses_of_the_run_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    original = SharedTeacher.look

    def counted(self: SharedTeacher, image: torch.Tensor) -> Any:
        if self._outputs is None:
            passes.append(1)
        return original(self, image)

    monkeypatch.setattr(SharedTeacher, "look", counted)
    options = {"ensemble.share": "1", "kd.temperature": "3"}
    beside = train_side_by_side(
        900, "plain_unet", "plain_unet", METHODS, 0, _options(root, tag="beside", method_parameters=options)
    )
    # once per batch, and again where the ensemble's mirrored passes came between the teacher and what continues it
    assert 2 * 3 <= len(passes) <= 2 * 2 * 3
    assert [folder.parent.name.split("__")[2] for folder in beside] == list(METHODS)
    for method, folder in zip(METHODS, beside, strict=True):
        own = {key: value for key, value in options.items() if key.partition(".")[0] in method.split("+")}
        alone = train_distill(
            900, "plain_unet", "plain_unet", method, 0, _options(root, tag="alone", method_parameters=own)
        )
        assert _same(folder, alone) and _same(folder, alone, FINAL)
        logs = [[json.loads(line) for line in (f / "log.jsonl").read_text().splitlines()] for f in (folder, alone)]
        for key in ("terms", "validation_dice", "gradient_norms", "learning_rate"):
            assert [line[key] for line in logs[0]] == [line[key] for line in logs[1]]
        described = [json.loads((f.parent / "run.json").read_text()) for f in (folder, alone)]
        assert described[0] == described[1]
        assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in alone.iterdir())
        assert not list(folder.parent.glob(".*.lock"))


def test_with_cached_targets_too(root: Path) -> None:
    options = {"targets": "cached", "epochs": 1}
    methods = ["kd", "none"]
    beside = train_side_by_side(
        900, "plain_unet", "plain_unet", methods, 0, _options(root, tag="cached_beside", **options)
    )
    for method, folder in zip(methods, beside, strict=True):
        alone = train_distill(900, "plain_unet", "plain_unet", method, 0, _options(root, tag="cached_alone", **options))
        assert _same(folder, alone)


def test_stopped_at_different_epochs_they_go_on_to_the_unbroken_weights(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["none", "kd"]
    whole = train_side_by_side(900, "plain_unet", "plain_unet", methods, 0, _options(root, tag="whole"))
    original, ended = Trainer.end_epoch, []

    def dying(self: Trainer, **more: Any) -> Any:
        ended.append(self)
        if len(ended) == 2:  # after the first one's first epoch, before the other's
            raise KeyboardInterrupt
        return original(self, **more)

    broken = _options(root, tag="broken")
    monkeypatch.setattr(Trainer, "end_epoch", dying)
    with pytest.raises(KeyboardInterrupt):
        train_side_by_side(900, "plain_unet", "plain_unet", methods, 0, broken)
    monkeypatch.setattr(Trainer, "end_epoch", original)
    runs = [folder.parent.parent / folder.parent.name.replace("__whole", "__broken") for folder in whole]
    assert [(run / "fold_0" / LATEST).exists() for run in runs] == [True, False]
    with pytest.raises(RunError, match="--continue"):
        train_side_by_side(900, "plain_unet", "plain_unet", methods, 0, broken)
    going_on = TrainOptions(**{**vars(broken), "resume": True})
    for _ in range(2):  # the second time there is nothing left to do
        folders = train_side_by_side(900, "plain_unet", "plain_unet", methods, 0, going_on)
    assert all(_same(*pair) and _same(*pair, FINAL) for pair in zip(whole, folders, strict=True))


def test_one_that_fails_does_not_stop_the_others(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.step

    def failing(self: Trainer, batch: Any) -> Any:
        if "__cwd__" in str(self.folder) and self.epoch == 1:
            raise RunError("The loss became NaN.")
        return original(self, batch)

    monkeypatch.setattr(Trainer, "step", failing)
    with pytest.raises(RunError, match=r"1 of 2 trainings failed.*cwd.*became NaN"):
        train_side_by_side(900, "plain_unet", "plain_unet", ["cwd", "kd"], 0, _options(root, tag="one"))
    run = root / "results" / NAME / "plain_unet_w2__3d_fullres__{}__from_plain_unet__one" / "fold_0"
    assert not (Path(str(run).format("cwd")) / FINAL).exists() and (Path(str(run).format("kd")) / FINAL).exists()


def test_one_whose_memory_or_score_fails_does_not_stop_the_others(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, finish = Trainer.step, several_methods.finish

    def failing(self: Trainer, batch: Any) -> Any:
        if "__cwd__" in str(self.folder):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore of it")
        return step(self, batch)

    def unscored(task: Any, job: Any) -> Path:
        if "__kd__" in str(job.folder):
            raise RunError("The scan is gone.")
        scored.append(job.folder)
        return finish(task, job)

    scored: list[Path] = []
    monkeypatch.setattr(Trainer, "step", failing)
    monkeypatch.setattr(several_methods, "finish", unscored)
    with pytest.raises(RunError, match=r"2 of 3 trainings failed.*memory ran out \(CUDA.*The scan is gone") as caught:
        options = _options(root, tag="two", epochs=1)
        train_side_by_side(900, "plain_unet", "plain_unet", ["cwd", "kd", "none"], 0, options)
    assert "\n" not in str(caught.value)
    (folder,) = scored
    assert "__none__" in str(folder) and (folder / FINAL).exists()


def test_a_dry_run_refuses_what_the_training_would(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["900", "plain_unet", "plain_unet", "kd,dml", "0", "--root", str(root), "--device", "cpu", "--dry-run"]
    assert main([*words, "--track", "mlflow"]) == 1
    assert "--track shows one training at a time, found 2 methods" in capsys.readouterr().err
    assert main([*words, "--set", "cwd.weight=2"]) == 1
    assert "'cwd.weight' belongs to none of kd, dml" in capsys.readouterr().err
    settings = vars(_options(root, tag="dry"))
    lines = medkd.dry_run(900, "plain_unet", "folds", teacher="plain_unet", method="kd, dml", **settings)
    assert sum(line.startswith("method ") for line in lines) == 2


def test_the_command_trains_all_folds_of_all_methods_and_scores_them(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["900", "plain_unet", "plain_unet", "kd,dml", "0", "--root", str(root), "--epochs", "1", "--device", "cpu"]
    words += ["--iterations-per-epoch", "2", "--workers", "0", "--tag", "c", "--set", "dml.weight=2"]
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "method     kd" in shown and "method     dml" in shown
    assert main(words) == 0
    folders = [Path(line) for line in capsys.readouterr().out.splitlines() if line.startswith("/")]
    assert len(folders) == 2 and all((folder / "validation" / "summary.json").exists() for folder in folders)
    settings = [json.loads((folder.parent / "run.json").read_text())["method_parameters"] for folder in folders]
    assert settings == [{}, {"dml.weight": "2"}]


def test_what_one_method_is_refused_for_throws_nothing_of_another_away(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = train_distill(900, "plain_unet", "plain_unet", "kd", 0, _options(root, tag="lost", epochs=1))
    prepare = SegmentationLesson.prepare

    def doubts(self: SegmentationLesson) -> list[str]:
        return ["The terms dml have no gradient."] if self.job.run.method == "dml" else []

    def fails(self: SegmentationLesson) -> None:
        prepared.append(self.job.run.method)
        if self.job.run.method == "dml":
            raise RunError("The cached targets would take more than the disk has.")
        prepare(self)

    prepared: list[str | None] = []
    monkeypatch.setattr(SegmentationLesson, "doubts", doubts)
    monkeypatch.setattr(SegmentationLesson, "prepare", fails)
    for strict, message in ((True, "--strict: The terms dml have no gradient"), (False, "more than the disk has")):
        options = _options(root, tag="lost", epochs=1, overwrite=True, strict=strict)
        with pytest.raises(RunError, match=message):
            train_side_by_side(900, "plain_unet", "plain_unet", ["kd", "dml"], 0, options)
        assert (kept / FINAL).exists() and prepared == ([] if strict else ["kd", "dml"])


def test_what_cannot_be_is_refused_before_anything_is_trained(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(methods: list[str], error: type[MedkdError], message: str, **changes: Any) -> None:
        options = _options(root, tag="refused", **changes)
        with pytest.raises(error, match=message) as caught:
            train_side_by_side(900, "plain_unet", "plain_unet", methods, 0, options)
        assert "\n" not in str(caught.value)
        assert not list((root / "results" / NAME).glob("*__refused/fold_0/*.pt"))

    attempt(["kd", "kd"], MethodError, "must differ, found kd, kd")
    attempt([], MethodError, "Expected methods to train with")
    kept = train_distill(900, "plain_unet", "plain_unet", "kd", 0, _options(root, tag="kept", epochs=1))
    with pytest.raises(MethodError, match="needs more of the teacher than its outputs"):
        more = _options(root, tag="kept", epochs=1, targets="cached", overwrite=True)
        train_side_by_side(900, "plain_unet", "plain_unet", ["kd", "at"], 0, more)
    assert (kept / FINAL).exists()  # nothing was thrown away for a training that cannot be
    attempt(["kd", "kdd"], MethodError, "Did you mean 'kd'")
    attempt(["kd", "dml"], MethodError, "'cwd.weight' belongs to none of kd, dml", method_parameters={"cwd.weight": 1})
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    attempt(["kd", "dml"], RunError, "works in one process, but 2 were started")
    monkeypatch.undo()
    attempt(["kd", "dml"], RunError, "shows one training at a time, found 2 methods", track="mlflow")
    with pytest.raises(RunError, match="Expected one method, found 'kd,dml'"):
        medkd.train_distill(900, "plain_unet", "plain_unet", "kd,dml", 0, _options(root))
    run = root / "results" / NAME / "plain_unet_w2__3d_fullres__dml__from_plain_unet__locked" / "fold_0"
    run.parent.mkdir()
    other = {"host": platform.node(), "process": os.getppid(), "started": psutil.Process(os.getppid()).create_time()}
    (run.parent / ".fold_0.lock").write_text(json.dumps(other))
    with pytest.raises(RunError, match="is being trained by the process"):
        train_side_by_side(900, "plain_unet", "plain_unet", ["kd", "dml"], 0, _options(root, tag="locked"))
    assert not list((root / "results" / NAME).glob("*__locked/fold_0/*.pt"))
    assert not list((root / "results" / NAME).glob("*__kd__*__locked"))  # nor a lock of its own
