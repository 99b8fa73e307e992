"""What holds for every command: quick help, a version, one sentence for any argument, any terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import medkd
from medkd.cli import COMMANDS
from medkd.cli.overview import main as overview

ROOT = Path(__file__).parents[2]
TOO_HEAVY = ("torch", "monai", "matplotlib", "scipy", "SimpleITK", "ultralytics")


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, in the repository."""
    variables = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, errors="replace", cwd=ROOT, env=variables, check=False
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_before_anything_heavy_is_loaded(command: str) -> None:
    code = f"""
import sys
from medkd.cli.{COMMANDS[command][0]} import main
try:
    main(["--help"])
except SystemExit:
    pass
print("loaded:", *sorted(set({TOO_HEAVY!r}) & set(sys.modules)))
"""
    result = python("-c", code)
    assert f"usage: medkd_{command}" in result.stdout, result.stderr
    assert result.stdout.splitlines()[-1].split() == ["loaded:"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_its_version_and_takes_modules(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = import_module(f"medkd.cli.{COMMANDS[command][0]}").main
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"medkd_{command} of medkd {medkd.__version__}\n"
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--import MODULE" in capsys.readouterr().out


def test_the_package_runs_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert overview([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert overview(["--version"]) == 0
    assert capsys.readouterr().out == f"medkd {medkd.__version__}\n"
    assert overview(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err
    for name in ("list", "medkd_list"):
        with pytest.raises(SystemExit):
            overview([name, "--help"])
        assert "usage: medkd_list" in capsys.readouterr().out
    assert "usage: python -m medkd" in python("-m", "medkd").stdout


@pytest.mark.parametrize("words", [["list", "networks"], ["--help"]])
def test_a_terminal_that_knows_ascii_only_gets_everything_else(words: list[str]) -> None:
    code = f"""
from medkd.cli import list_entries
rows = list_entries.network_rows
list_entries.network_rows = lambda: rows(["espnetv2"])
list_entries.detector_rows = lambda: []
from medkd.cli.overview import main
raise SystemExit(main({words!r}))
"""
    result = python("-c", code, PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.isascii() and result.stdout


@pytest.mark.parametrize("dataset", ["\u00b2", "\u0663", "9" * 5000, "4.0", "", "../raw", "Dataset\u00b9"])
@pytest.mark.parametrize("command", ["train", "report", "cross_validate", "plan_and_preprocess"])
def test_what_is_no_data_set_is_one_sentence(
    command: str, dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        "train": [dataset, "unet_tiny", "0"],
        "report": [dataset],
        "cross_validate": [dataset, "run"],
        "plan_and_preprocess": ["--dataset", dataset],
    }[command]
    (tmp_path / "raw" / "Dataset002_Toy").mkdir(parents=True)
    assert overview([command, *words, "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["train", "4", "unet\0tiny", "0"],
        ["predict", "-i", "scans\0", "-o", "out", "-m", "run"],
        ["evaluate", "a", "b\0"],
        ["list", "runs", "--root", "\0"],
        ["convert", "msd", "a\0b", "-d", "4"],
        ["plan_and_preprocess", "-d", "4\0"],
    ],
)
def test_a_null_character_is_one_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert overview(words) == 1
    error = capsys.readouterr().err
    assert "holds a null character" in error and error.count("\n") == 1


@pytest.mark.parametrize("module", ["absent_module_of_mine", "a/b.py", "x y"])
def test_a_module_that_is_not_there_is_one_sentence(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["list", "runs"], ["convert", "msd", "a", "-d", "4"]):
        assert overview([*words, "--import", module]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(("command", "words"), [("list", ["networks"]), ("plan_and_preprocess", ["-d", "3"])])
def test_of_several_processes_one_that_does_not_train_says_so(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    main = import_module(f"medkd.cli.{COMMANDS[command][0]}").main
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*words, "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: medkd_{command} works in one process, but 2 were started") and said.count("\n") == 1
    assert not any(tmp_path.iterdir())
