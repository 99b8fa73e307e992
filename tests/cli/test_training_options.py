"""The training commands hand over what was given, and refuse a 0 instead of taking it for "not given"."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

import medkd.api.compress as compressing
import medkd.reproduction.search as searching
from medkd.api.compression import Compression
from medkd.cli import compress, train_distill, tune
from medkd.cli.train import main as train_command
from medkd.cli.train_distill import main as distill_command
from medkd.core.errors import RunError
from medkd.training import segmentation_task as task
from medkd.training.options import TrainOptions
from tests.training.builders import make_dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    make_dataset(folder, cases=2)
    return folder


@pytest.mark.parametrize(
    "option",
    [
        ["--epochs", "0"],
        ["--epochs", "-5"],
        ["--iterations-per-epoch", "0"],
        ["--batch-size", "-1"],
        ["--patch-size", "0", "0", "0"],
        ["--learning-rate", "-1"],
        ["--width-divisor", "0"],
        ["--seed", "-1"],
        ["--workers", "-1"],
        ["--save-every", "0"],
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_numbers_outside_of_their_limits_are_refused(
    root: Path, option: list[str], dry: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_command(["900", "plain_unet", "0", "--root", str(root), "--device", "cpu", *option, *dry]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {option[0]} expects ") and error.count("\n") == 1
    assert not (root / "results").exists()


def test_a_limit_of_no_space_for_targets_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "900",
        "plain_unet",
        "unet_tiny",
        "kd",
        "0",
        "--root",
        str(root),
        "--targets",
        "cached",
        "--targets-limit",
        "0",
    ]
    assert distill_command(command) == 1
    assert "--targets-limit expects a number above 0" in capsys.readouterr().err


def test_what_is_given_arrives_and_the_rest_keeps_its_default(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainOptions] = []
    monkeypatch.setattr(task, "train", lambda dataset, network, fold, options: seen.append(options))
    monkeypatch.setattr(
        task, "train_distill", lambda dataset, teacher, student, method, fold, options: seen.append(options)
    )
    given = [
        "--root",
        str(root),
        "--patch-size",
        "8",
        "16",
        "24",
        "--width-divisor",
        "2",
        "--save-every",
        "3",
        "--workers",
        "0",
    ]
    assert train_command(["900", "plain_unet", "0", *given]) == 0
    assert seen[0] == TrainOptions(root=root, patch_size=(8, 16, 24), width_divisor=2, save_every=3, workers=0)
    targets = ["--targets", "cached", "--targets-tta", "--targets-limit", "0.5", "--init", "teacher", "-c", "2d"]
    assert distill_command(["900", "plain_unet", "unet_tiny", "kd", "0", "--root", str(root), *targets]) == 0
    assert seen[1] == TrainOptions(
        root=root, configuration="2d", targets="cached", targets_tta=True, targets_limit=0.5, init="teacher"
    )  # fmt: skip


@pytest.mark.parametrize(("text", "axes"), [(["none"], ()), (["0", "2"], (0, 2))])
def test_mirror_axes_are_none_or_numbers(
    root: Path, monkeypatch: pytest.MonkeyPatch, text: list[str], axes: tuple[int, ...]
) -> None:
    seen: list[TrainOptions] = []
    monkeypatch.setattr(task, "train", lambda dataset, network, fold, options: seen.append(options))
    assert train_command(["900", "plain_unet", "0", "--root", str(root), "--mirror-axes", *text]) == 0
    assert seen[0].mirror_axes == axes


def _options(parser: argparse.ArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions if action.option_strings}


def test_commands_that_train_have_every_option_of_a_training_but_what_they_decide() -> None:
    every = _options(train_distill._arguments())
    of_detection = {"image_size", "backbone_weights"}
    from_the_model = {"width_divisor", "init", "weights", "configuration", "teachers"}
    from_what_is_there = {"resume", "overwrite", "no_validate"}
    assert every - _options(compress._arguments()) == of_detection | from_the_model | from_what_is_there
    assert every - _options(tune._arguments()) == {"tag", "resume", "overwrite", "no_validate", "track", "dry_run"}


SWITCHES = ["--tf32", "on", "--channels-last", "--cudnn-benchmark", "--compile", "--strict", "--mirror-axes", "none"]
HANDED_OVER = {
    **{"tf32": "on", "channels_last": True, "cudnn_benchmark": True, "compile": True, "strict": True},
    **{"mirror_axes": (), "labels": "none", "method_parameters": {"kd.weight": "2"}, "seed": 0},
}


def test_a_compression_hands_over_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, object]] = []

    def compressed(model: str, dataset: str, **settings: object) -> Compression:
        seen.append(settings)
        raise RunError("seen")

    monkeypatch.setattr(compressing, "compress", compressed)
    own = ["--method", "kd", "--labels", "none", "--set", "kd.weight=2"]
    assert compress.main(["MODEL", "-d", "900", *own, *SWITCHES]) == 1
    handed = {name: value for name, value in seen[0].items() if name not in ("root", "say")}
    assert handed == {**HANDED_OVER, "fold": "0", "method": "kd"}


def test_a_search_hands_over_what_it_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[searching.SearchOrder] = []

    def searched(order: searching.SearchOrder, say: object) -> None:
        seen.append(order)
        raise RunError("seen")

    monkeypatch.setattr(searching, "search_parameters", searched)
    own = ["--search", "kd.temperature=1:4", "--trials", "1", "--labels", "none", "--set", "kd.weight=2"]
    command = ["900", "plain_unet", "unet_tiny", "kd", "0", "--root", str(root), *own, *SWITCHES]
    assert tune.main([*command, "--teacher-options", "--tf32 off --compile"]) == 1
    assert seen[0].settings == HANDED_OVER
    assert seen[0].teacher_settings == {"tf32": "off", "compile": True, "seed": 0}
    assert tune.main([*command, "--teacher-options=--dry-run"]) == 1 and len(seen) == 1
