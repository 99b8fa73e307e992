"""``medkd_reproduce`` on a phantom: killed on the way, given again, and its table."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from medkd.cli.reproduce import main
from medkd.reproduction import reproduce
from medkd.reproduction.reproduce import ReproduceOptions, open_recipe
from medkd.reproduction.runner import Outcome, Runner
from medkd.reproduction.state import Record
from tests.evaluation.folders import make_dataset, make_run
from tests.reproduction.test_recipe import recipe
from tests.training.builders import NAME as BOXES
from tests.training.builders import make_dataset as make_labelled

TOY = recipe(
    dataset={"number": 900, "name": "Phantom", "format": "phantom", "cases": 6},
    settings={
        **{"epochs": 1, "iterations_per_epoch": 1, "batch_size": 2, "patch_size": [16, 32, 48], "workers": 0},
        "width_divisor": 8,
        "configuration": "3d_fullres",
        "device": "cpu",
    },
    folds=["0"],
    teachers={"large": {"network": "plain_unet"}},
    students={"tiny": {"network": "plain_unet"}},
    published=[{"student": "tiny", "method": "alone", "scores": {"Dice": 0.5}, "source": "a paper"}],
    source="a paper",
)


@pytest.mark.slow
def test_a_killed_reproduction_goes_on_and_ends_with_the_whole_table(tmp_path: Path) -> None:
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(TOY))
    command = [sys.executable, "-m", "medkd", "reproduce", str(path), "--root", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = tmp_path / "first.log"
    with log.open("w") as output:
        first = subprocess.Popen(command, stdout=output, env=environment)
        deadline = time.monotonic() + 300
        while "large-fold0 begins" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
        first.wait()
    second = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("prepare begins") == 1  # again, which is cheap
    folder = tmp_path / "reproductions" / "toy"
    rows = json.loads((folder / "table.json").read_text())["rows"]
    assert [(row["teacher"], row["student"], row["method"]) for row in rows] == [
        ("large", None, None),
        (None, "tiny", "alone"),
        ("large", "tiny", "kd"),
    ]
    assert all(row["runs"] == row["of"] == 1 and row["Dice"]["n"] == 2 for row in rows)
    summary = next((tmp_path / "results").glob("*/*toy-tiny-alone-s0/fold_0/validation/summary.json"))
    assert rows[1]["Dice"]["mean"] == pytest.approx(
        json.loads(summary.read_text())["foreground_mean"]["Dice"], abs=1e-6
    )
    assert rows[1]["published"] == [{"Dice": 0.5}]
    assert "Dice 0.5" in (folder / "table.md").read_text()
    assert (folder / "table.tex").read_text().count(r"\\") == 4
    assert str(tmp_path) not in (folder / "table.json").read_text()


def test_what_cannot_run_is_refused_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "toy.json"
    wrong: list[tuple[dict[str, Any], list[str], str]] = [
        ({"students": {"tiny": {"network": "unet_tinny"}}}, [], "there is no network or detector 'unet_tinny'"),
        (
            {"methods": {"kd": {"method": "kd", "parameters": {"kd.tau": 1}}}, "published": []},
            [],
            "has no parameter 'tau'",
        ),
        ({"settings": {"epoch": 1}}, [], "'epoch', which no training takes. Did you mean 'epochs'?"),
        ({"teachers": {"given": {"model": "nowhere"}}}, [], "The teacher 'given' is not at"),
        ({"dataset": {"number": 7, "name": "New", "format": "msd"}}, [], "give the download with --data"),
        ({}, ["--only", "big*"], "no run is called 'big*'"),
        ({}, ["--model", "large=x"], "has no teacher 'large' from elsewhere"),
        ({}, ["--model", "large"], "--model expects NAME=VALUE, found 'large'"),
        ({}, ["--margin", "nan"], "--margin expects a loss above 0 and below 1, for example 0.01, found nan"),
        ({}, ["--margin", "0"], "--margin expects a loss above 0 and below 1, for example 0.01, found 0"),
        ({}, ["--gpus", "-1"], "--gpus expects a number of at least 0, found -1"),
        ({}, ["--memory", "0"], "--memory expects a number above 0, found 0"),
        ({}, ["--device", "gpu"], "Unknown device 'gpu'"),
        ({"settings": {"epochs": "three"}}, [], "settings: epochs: expected int, found 'three'"),
        ({}, ["--check", "--only", "big*"], "no run is called 'big*'"),
        ({}, ["--status", "--only", "big*"], "no run is called 'big*'"),
    ]
    for changes, words, sentence in wrong:
        path.write_text(json.dumps({**TOY, **changes}))
        assert main([str(path), "--root", str(tmp_path), *words]) == 1
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_status_and_check_start_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(TOY))
    assert main([str(path), "--root", str(tmp_path), "--status"]) == 0
    shown = capsys.readouterr().out
    assert "to do   tiny-kd-from-large-seed0-fold0: medkd_train_distill Dataset900_Phantom '<large-fold0>'" in shown
    assert main([str(path), "--root", str(tmp_path), "--check"]) == 0
    shown = capsys.readouterr().out
    assert "3 trainings" in shown and re.search(r"disk: about 0\.\d GiB for 3 trainings, .*; \d+ GiB are free", shown)
    assert main([str(path), "--root", str(tmp_path), "--check", "--only", "large*"]) == 0
    assert "1 trainings" in capsys.readouterr().out
    path.write_text(json.dumps({**TOY, "settings": {"epochs": "x", "iterations_per_epoch": 2}}))
    assert main([str(path), "--root", str(tmp_path), "--check"]) == 1
    assert "unknown: settings: epochs: expected int" in capsys.readouterr().out
    path.write_text(json.dumps({**TOY, "dataset": {"number": 7, "name": "New", "format": "msd"}}))
    assert main([str(path), "--root", str(tmp_path), "--check"]) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["toy.json"]


@pytest.mark.parametrize("stated", [5, 6])
def test_another_number_of_cases_than_the_recipe_states_is_said_once(
    stated: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_labelled(tmp_path)
    prepared = tmp_path / "preprocessed" / BOXES
    (tmp_path / "raw" / BOXES / "dataset.json").write_text((prepared / "dataset.json").read_text())
    path = tmp_path / "toy.json"
    data = {"number": 900, "name": "Boxes", "format": "msd", "cases": stated}
    path.write_text(json.dumps({**TOY, "dataset": data}))
    monkeypatch.setattr(Runner, "run", lambda self: Outcome())
    monkeypatch.setattr(reproduce, "rehearse_runs", lambda *_: [])
    sentence = "the recipe is of 5 cases (dataset.cases), but Dataset900_Boxes has 6 with labels; see which"
    said = {}
    for words in (["--check"], ["--status"], []):
        assert main([str(path), "--root", str(tmp_path), *words]) == 0
        said[" ".join(words)] = capsys.readouterr().out
    wrong = int(stated != 6)
    assert said["--check"].count(f"warning: {sentence}") == said["--check"].count("dataset.cases") == wrong
    assert said[""].count(f"warning: {sentence}") == said["--status"].count(f"data: {sentence}") == wrong
    for name in ("table.txt", "table.md", "table.tex"):
        assert (tmp_path / "reproductions" / "toy" / name).read_text().count(sentence) == wrong


def test_a_score_of_another_command_is_in_no_table_and_said_to_be_due_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe was edited, and nothing was begun since; or the record was put there by somebody else."""
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(TOY))
    make_dataset(tmp_path, 8)
    make_run(tmp_path, "unet_tiny__3d_fullres__toy", "unet_tiny", 1.0, {0: range(8)})
    name = "tiny-alone-seed0-fold0"
    fold = tmp_path / "results" / "Dataset004_Test" / "unet_tiny__3d_fullres__toy" / "fold_0"
    work = open_recipe(path, ReproduceOptions(root=tmp_path))
    for command, runs in ((("train", "something", "else"), 0), (tuple(work.nodes[name].command({})), 1)):
        work.state.write(name, Record(command=command, status="done", folder=str(fold)))
        assert main([str(path), "--root", str(tmp_path), "--status"]) == 0
        shown = capsys.readouterr().out
        assert (f"done    {name}: " in shown) == bool(runs)
        assert (f"due again, and not counted: {name}: it was done by another command" in shown) == (not runs)
        row = next(row for row in work.results().rows if row.method == "alone")
        assert (row.done, len(row.scores)) == (runs, runs)
