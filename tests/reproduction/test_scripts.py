"""Job scripts that are written, and what they do where somebody submits them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medkd.cli.reproduce import main
from medkd.reproduction.graph import Node
from medkd.reproduction.scripts import levels
from tests.reproduction.test_reproduce import TOY

_SBATCH = """#!/bin/bash
# runs every task of an array at once, and says which job it was
file="${@: -1}"
last=$(grep -oP -- '--array=0-\\K[0-9]+' "$file")
echo "$@" >> "$PRETENDED/calls"
number=$(wc -l < "$PRETENDED/calls")
for task in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$task bash "$file"; done
echo "$number;somewhere"
"""
_PYTHON = """#!/bin/bash
echo "$@" >> "$PRETENDED/runs"
"""


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch, and a Python that only writes down what it is called for."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"sbatch": _SBATCH, "python": _PYTHON}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PRETENDED", str(tmp_path))
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return tmp_path


def test_scripts_are_written_and_nothing_is_submitted(pretended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, root = pretended / "toy.json", pretended / "a root"
    path.write_text(json.dumps(TOY))
    asked = ["--engine", "slurm", "--write", "--cpus", "3", "--gpus", "1", "--memory", "7", "--jobs", "2"]
    asked += ["--slurm", "partition=gpu", "--slurm", "timeout_min=90", "--device", "cuda"]
    asked += ["--import", "string"]
    assert main([str(path), "--root", str(root), *asked]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.name for file in written[:1]] == ["01_prepare.sh"] and written[-1].name == "submit.sh"
    assert not (pretended / "calls").exists() and not (root / "reproductions" / "toy" / "runs").exists()
    text = written[0].read_text()
    assert f"#SBATCH --output='{root}/reproductions/toy/slurm_scripts/01_prepare_%a.log'\n" in text
    for line in ("array=0-0%2", "cpus-per-task=3", "gpus-per-node=1", "mem=7168M", "partition=gpu", "time=90"):
        assert f"#SBATCH --{line}\n" in text
    assert " --import string --margin 0.01 --device cuda --only " in text


def test_submitted_scripts_do_every_run_once_after_what_it_needs(
    pretended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, root = pretended / "toy.json", pretended / "a root"
    path.write_text(json.dumps(TOY))
    main([str(path), "--root", str(root), "--engine", "slurm", "--write"])
    submit = capsys.readouterr().out.splitlines()[-1]
    subprocess.run(["/bin/bash", submit], check=True, capture_output=True, cwd="/")
    calls = (pretended / "calls").read_text().splitlines()
    assert [call.rpartition(" ")[2] for call in calls] == ["01_prepare.sh", "02_student_teacher.sh", "03_student.sh"]
    assert "dependency" not in calls[0] and "--dependency=afterok:1 " in calls[1]
    assert "--dependency=afterok:2 " in calls[2] and "--kill-on-invalid-dep=yes" in calls[2]
    runs = (pretended / "runs").read_text().splitlines()
    done = [run.partition("--only ")[2].split()[0] for run in runs]
    assert done[0] == "prepare" and done[-1] == "tiny-kd-from-large-seed0-fold0"
    assert sorted(done[1:3]) == ["large-fold0", "tiny-alone-seed0-fold0"] and len(done) == 4
    assert all(run.startswith(f"-m medkd reproduce {path} --root {root} ") for run in runs)


def test_writing_is_for_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(TOY))
    assert main([str(path), "--root", str(tmp_path), "--write"]) == 1
    assert "--write is for --engine slurm, found --engine local" in capsys.readouterr().err


def test_levels_follow_the_needs() -> None:
    def node(name: str, *needs: str) -> Node:
        values: dict[str, Any] = {"kind": "student", "words": (), "needs": needs}
        return Node(name=name, **values)

    nodes = {entry.name: entry for entry in (node("a"), node("b", "a"), node("c", "b", "done before"), node("d"))}
    assert levels(nodes) == [["a", "d"], ["b"], ["c"]]
