"""The commands on the page: the real parsers take every one of them, and they name the settings of their runs."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from medkd.cli import common, train, train_distill
from medkd.cli.training_options import training_settings
from medkd.core.run import Budget, NetworkSpec, RunDescription
from medkd.detection.options import DetectorOptions
from medkd.evaluation.report.data import Report, RunEntry
from medkd.evaluation.report.detection_task import DETECTION
from medkd.evaluation.report.provenance import commands_of, provenance
from medkd.evaluation.report.segmentation_task import SEGMENTATION
from medkd.training.options import TrainOptions

COMMANDS = {"medkd_train": train.main, "medkd_train_distill": train_distill.main}
SCAN = NetworkSpec(name="unet_tiny", in_channels=1, num_outputs=3, patch_size=(16, 32, 32), width_divisor=2)
IMAGE = NetworkSpec(name="yolov8n", in_channels=3, num_outputs=2, patch_size=(640, 640))
ALONE = RunDescription(
    dataset="Dataset004_Test",
    configuration="3d_fullres",
    network=SCAN,
    budget=Budget(20, 10, 2, 0.00123, 7),
    mirror_axes=(1, 2),
    precision="bf16",
)
DISTILLED = replace(
    ALONE,
    mirror_axes=(),
    method="kd+dist",
    method_parameters={"kd.temperature": 2.0, "kd.file": "/home/some body/a file.pt", "dist.names": ["a b", "c"]},
    teacher="/home/some body/my models/nnUNetTrainer__nnUNetPlans__3d_fullres",
    targets="cached",
    targets_tta=True,
    init="teacher",
    unlabelled_share=0.25,
    confidence=0.9,
    modules={"mine": "my_module.networks"},
)
DETECTOR = replace(
    ALONE,
    configuration="detection",
    network=IMAGE,
    mirror_axes=(),
    method="sfd",
    teacher="yolov8l",
    backbone_weights="/home/some body/first weights.pt",
    labels="none",
)
RUNS = {
    "unet_tiny__3d_fullres": ALONE,
    "unet_tiny__3d_fullres__kd+dist__from_nnUNetTrainer__my tag": DISTILLED,
    "yolov8n__detection__sfd__from_yolov8l": DETECTOR,
}

AS_FILES = {"method_parameters", "weights", "backbone_weights", "protocol", "precision"}  # looked at by themselves
TOLD = {field.name for field in fields(RunDescription)} - AS_FILES


def entry(name: str) -> RunEntry:
    return RunEntry(path=Path("/data/results") / name, run=RUNS[name], role="distilled", folds=("0", "3"))


def parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What the command's own parser makes of a line."""

    def parse(main: Any, parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str]) -> argparse.Namespace:
        return parser().parse_args(argv)

    monkeypatch.setattr(common, "run", parse)
    name, *words = shlex.split(command)
    found: Any = COMMANDS[name](words)
    return argparse.Namespace(**vars(found))


@pytest.mark.parametrize("name", RUNS)
def test_the_real_parsers_take_every_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RUNS[name]
    own = DetectorOptions if run.configuration == "detection" else TrainOptions
    commands = commands_of(entry(name))
    assert [parsed(command, monkeypatch).fold for command in commands] == ["0", "3"]
    for command in commands:
        assert "some body" not in command
        options = parsed(command, monkeypatch)
        settings = training_settings(options)
        assert set(settings) <= {field.name for field in fields(own)}
        chosen = own(**settings)
        assert (chosen.epochs, chosen.iterations_per_epoch, chosen.batch_size) == (20, 10, 2)
        assert (chosen.learning_rate, chosen.seed, chosen.precision) == (0.00123, 7, "bf16")
        assert (chosen.tag or "") == ("my tag" if run is DISTILLED else "")
        assert set(chosen.method_parameters) == set(run.method_parameters)
        for option in {field.name for field in fields(own)} & TOLD:
            assert getattr(chosen, option) == getattr(run, option), option


def test_what_a_run_was_made_with_is_on_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, distilled, detector = (parsed(commands_of(entry(name))[0], monkeypatch) for name in RUNS)
    assert TrainOptions(**training_settings(alone)).mirror_axes == (1, 2)
    assert (alone.patch_size, alone.width_divisor, alone.configuration) == ([16, 32, 32], 2, "3d_fullres")
    assert TrainOptions(**training_settings(distilled)).mirror_axes == ()
    assert (distilled.teacher, distilled.student, distilled.method) == (
        "nnUNetTrainer__nnUNetPlans__3d_fullres",
        "unet_tiny",
        "kd+dist",
    )
    assert (distilled.targets, distilled.targets_tta, distilled.init) == ("cached", True, "teacher")
    assert distilled.imports == ["my_module.networks"]
    assert distilled.set[:2] == ["kd.temperature=2.0", "kd.file=a file.pt"]
    assert (detector.image_size, detector.backbone_weights) == (640, Path("first weights.pt"))


def test_the_page_shows_these_commands_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in (SEGMENTATION, DETECTION):
        report = Report(title="Dataset004_Test", task=task, entries=tuple(map(entry, RUNS)))
        shown = [unescape(text) for text in re.findall(r"<code>(.*?)</code>", provenance(report))]
        assert shown == [command for name in RUNS for command in commands_of(entry(name))]
        for command in shown:
            parsed(command, monkeypatch)
