"""Students that start from their teacher: from the command to the first step, recorded, resumed, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import medkd.training.segmentation as segmentation
from medkd.cli.train_distill import main
from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import RunError
from medkd.core.files import read_json
from medkd.core.run import FINAL, RUN_FILE
from medkd.evaluation.report.data import baseline_of
from medkd.evaluation.report.read import gather
from medkd.models.run import SegmentationRun
from medkd.training.distillation import DistillationTrainer
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import dry_run, train, train_distill
from tests.training.builders import NAME, make_dataset


def _options(root: Path, **changes: object) -> TrainOptions:
    values: dict = {
        "root": root,
        "epochs": 1,
        "iterations_per_epoch": 2,
        "workers": 0,
        "save_every": 1,
        "device": "cpu",
        "validate": False,
    }
    return TrainOptions(**{**values, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a teacher whose plan has twice the student's channels."""
    path = tmp_path_factory.mktemp("root")
    folder = make_dataset(path)
    plans = (
        (folder / "plans.json")
        .read_text()
        .replace('"features_per_stage": [\n            4,\n            8', '"features_per_stage": [8, 16')
    )
    assert "[8, 16\n" in plans
    plan = json.loads(plans)
    for configuration in plan["configurations"].values():
        residual = {**configuration["architectures"]["plain_unet"], "blocks_encoder": [1, 2], "blocks_decoder": [1]}
        configuration["architectures"] |= {"resenc_unet_m": residual, "resenc_unet_l": residual}
    (folder / "plans.json").write_text(json.dumps(plan))
    train(900, "plain_unet", 0, _options(path, iterations_per_epoch=30, learning_rate=0.05))
    return path


def _student(root: Path, **changes: object) -> Path:
    return train_distill(900, "plain_unet", "plain_unet", "none", 0, _options(root, width_divisor=2, **changes))


def test_the_first_step_starts_near_the_teacher(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: dict[str, torch.Tensor] = {}
    image = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    original = DistillationTrainer.fit

    def looking(self: DistillationTrainer, *, resume: bool = False) -> None:
        with torch.no_grad():
            outputs[self.folder.parent.name[-1]] = self.network.eval()(image)  # type: ignore[assignment]
        original(self, resume=resume)

    monkeypatch.setattr(DistillationTrainer, "fit", looking)
    for tag, init in (("a", "random"), ("b", "teacher"), ("c", "teacher")):
        folder = _student(root, tag=tag, init=init)
        assert read_json(folder.parent / RUN_FILE)["init"] == init
    with torch.no_grad():
        answer = SegmentationRun(root / "results" / NAME / "plain_unet__3d_fullres").load([0]).networks[0](image)
    error = {tag: float((logits - answer).square().mean()) for tag, logits in outputs.items()}
    assert error["b"] < 0.5 * error["a"]
    assert torch.equal(outputs["b"], outputs["c"])


def test_a_killed_and_continued_run_does_not_start_from_the_teacher_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _student(root, tag="whole", init="teacher", epochs=3)
    original: Callable = segmentation.iterate
    calls = 0

    def dying(*args: object, **kwargs: object):  # type: ignore[no-untyped-def]
        nonlocal calls
        for batch in original(*args, **kwargs):
            calls += 1
            if calls == 6 + 5:  # the six batches of the run to start from, then the first step of the third epoch
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(segmentation, "iterate", dying)
    with pytest.raises(KeyboardInterrupt):
        _student(root, tag="broken", init="teacher", epochs=3)
    monkeypatch.setattr(segmentation, "iterate", original)
    monkeypatch.setattr(DistillationTrainer, "inherit", lambda *_: pytest.fail("inherited twice"))
    part = _student(root, tag="broken", init="teacher", epochs=3, resume=True)
    a, b = (load_checkpoint(f / FINAL)["network"] for f in (whole, part))
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(RunError, match="init: teacher there, random now"):
        _student(root, tag="broken", epochs=3, resume=True)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_with_cached_targets_and_in_2d(root: Path, configuration: str) -> None:
    if configuration == "2d":
        train(900, "plain_unet", 0, _options(root, configuration="2d"))
    options = _options(
        root, width_divisor=2, init="teacher", targets="cached", configuration=configuration, tag="cached"
    )
    folder = train_distill(900, "plain_unet", "plain_unet", "kd", 0, options)
    assert (folder / FINAL).exists()


def test_a_residual_student_starts_near_a_residual_teacher_of_another_size(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs: list[torch.Tensor] = []
    image = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))

    def looking(self: DistillationTrainer, **_: object) -> None:
        with torch.no_grad():
            outputs.append(self.network.eval()(image))  # type: ignore[arg-type]

    teacher = train(900, "resenc_unet_m", 0, _options(root, iterations_per_epoch=30, learning_rate=0.05))
    monkeypatch.setattr(DistillationTrainer, "fit", looking)
    for init in ("random", "teacher"):
        options = _options(root, width_divisor=2, init=init, tag=init)
        train_distill(900, "resenc_unet_m", "resenc_unet_l", "none", 0, options)
    with torch.no_grad():
        answer = SegmentationRun(teacher.parent).load([0]).networks[0](image)
    error = [float((logits - answer).square().mean()) for logits in outputs]
    assert error[1] < 0.5 * error[0]


def test_what_does_not_fit_is_one_clear_sentence_and_leaves_nothing(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((root / "results" / NAME).iterdir())
    with pytest.raises(RunError, match="student is a UNetTiny"):
        train_distill(900, "plain_unet", "unet_tiny", "none", 0, _options(root, init="teacher"))
    with pytest.raises(RunError, match="student is a ResEncUNet and the teacher is a PlainUNet"):
        train_distill(900, "plain_unet", "resenc_unet_m", "none", 0, _options(root, init="teacher"))
    with pytest.raises(RunError, match="random, or teacher for a student that has a teacher"):
        train(900, "plain_unet", 0, _options(root, init="teacher", tag="x"))
    with pytest.raises(RunError, match="found 'zero'"):
        _student(root, init="zero", tag="x")
    command = [
        "900",
        "plain_unet",
        "unet_tiny",
        "none",
        "0",
        "--init",
        "teacher",
        "--root",
        str(root),
        "--device",
        "cpu",
    ]
    assert main(command) == 1
    assert "use --init random" in capsys.readouterr().err
    assert sorted((root / "results" / NAME).iterdir()) == before


def test_the_dry_run_says_so_and_refuses_as_well(root: Path) -> None:
    options = _options(root, width_divisor=2, init="teacher", tag="dry")
    assert "starts from its teacher" in "\n".join(dry_run(900, "plain_unet", 0, options, "plain_unet", "kd"))
    with pytest.raises(RunError, match="student is a UNetTiny"):
        dry_run(900, "unet_tiny", 0, replace(options, width_divisor=1), "plain_unet", "kd")


def test_the_report_compares_it_with_the_student_that_really_was_alone(root: Path) -> None:
    for tag, init in (("r1", "teacher"), ("r2", "random")):
        _student(root, tag=tag, init=init, validate=True)
    entries = gather(root / "results" / NAME, "0")
    started = next(e for e in entries if e.path.name.endswith("r1"))
    assert started.role == "distilled"
    baseline = baseline_of(started, entries)
    assert baseline is not None and baseline.path.name.endswith("r2")
    assert started.label == "plain_unet_w2 + none (r1, starts from its teacher)"
    imported = replace(started, run=replace(started.run, teacher="/models/teacher"))  # is recorded by its folder
    assert imported.label == started.label
