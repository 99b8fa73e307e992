"""The demo goes the whole way, says how, and goes on where it stopped."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from medkd.cli.demo import DemoResult, DemoRow, DemoSettings, main, run_demo, table

SETTINGS = {
    "teacher_epochs": 1,
    "student_epochs": 1,
    "iterations": 2,
    "patch_size": (32, 64, 80),  # a scan in few pieces
    "cases": 5,
    "test_cases": 1,
    "device": "cpu",
}


@pytest.fixture(scope="module", autouse=True)
def _timed_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medkd.cli.demo._REPETITIONS", 1)
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoSettings, DemoResult, str]:
    settings = DemoSettings(root=tmp_path_factory.mktemp("demo"), **SETTINGS)  # type: ignore[arg-type]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        result = run_demo(settings)
    return settings, result, out.getvalue()


@pytest.mark.slow
def test_teacher_student_and_distilled_student_are_scored(demo: tuple[DemoSettings, DemoResult, str]) -> None:
    _, result, _ = demo
    assert [row.name for row in result.rows] == ["teacher res_unet", "unet_tiny alone", "unet_tiny + dist"]
    assert result.rows[0].parameters > result.rows[1].parameters == result.rows[2].parameters
    for row in result.rows:
        assert row.validation_dice is not None
        assert row.test_dice is not None
        assert 0 <= min(row.validation_dice, row.test_dice) <= max(row.validation_dice, row.test_dice) <= 1


@pytest.mark.slow
def test_the_report_is_there(demo: tuple[DemoSettings, DemoResult, str]) -> None:
    _, result, _ = demo
    assert "unet_tiny" in result.report.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_commands_it_prints_are_understood(
    demo: tuple[DemoSettings, DemoResult, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every printed command is parsed by the command's own parser (nothing is run), so the demo cannot teach what does
    not exist.
    """
    commands = [shlex.split(line.strip()[2:]) for line in demo[2].splitlines() if line.strip().startswith("$ ")]
    parsed = []
    monkeypatch.setattr("argparse.ArgumentParser.exit", lambda *a: pytest.fail(str(a)))
    for name, *arguments in commands:
        module = import_module(f"medkd.cli.{name.removeprefix('medkd_')}")
        for holder in (module, import_module("medkd.cli.common")):
            monkeypatch.setattr(
                holder,
                "run",
                lambda work, parser, argv: parsed.append(made(parser).parse_args(argv)) or 0,
                raising=False,
            )
        assert module.main(arguments) == 0
    assert len(parsed) == len(commands)
    names = {command[0] for command in commands}
    assert names == {
        f"medkd_{n}" for n in ("plan_and_preprocess", "train", "train_distill", "predict", "evaluate", "report")
    }


@pytest.mark.slow
def test_a_second_demo_trains_nothing_again(
    demo: tuple[DemoSettings, DemoResult, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, result, _ = demo
    monkeypatch.setattr("medkd.training.trainer.Trainer.fit", lambda *a, **k: pytest.fail("trained again"))
    again = run_demo(settings)
    assert [replace(row, seconds=0) for row in again.rows] == [replace(row, seconds=0) for row in result.rows]


@pytest.mark.parametrize(
    "wrong",
    [["--student-epochs", "0"], ["--teacher-epochs", "-1"], ["--iterations-per-epoch", "0"], ["--device", "tpu"]],
)
def test_what_no_training_can_do_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    assert main(["--root", str(tmp_path / "demo"), *wrong]) == 1
    assert not (tmp_path / "demo").exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_missing_data_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "nowhere"), "--root", str(tmp_path / "root")]) == 1
    assert re.search(r"error: .*nowhere", capsys.readouterr().err)


def test_the_table_lines_up() -> None:
    text = table([DemoRow("teacher big", 18_960_000, 0.4123, 0.9, None), DemoRow("s", 1_950_000, 0.031, 0.8512, 0.7)])
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["teacher", "big", "18.96", "M", "412", "ms", "0.900", "–"]
    assert lines[3].split() == ["s", "1.95", "M", "31", "ms", "0.851", "0.700"]


def made(parser: argparse.ArgumentParser | Callable[[], argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The parser of a command, which most commands make only when they run."""
    return parser if isinstance(parser, argparse.ArgumentParser) else parser()
