"""A search is a run like others on every engine: killed on the way it goes on, and its student gets what it found."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from medkd.cli.reproduce import main
from medkd.core.serial import load
from medkd.reproduction.graph import Node
from medkd.reproduction.reproduce import ReproduceOptions, Work, open_recipe
from medkd.reproduction.search import BEST_FILE, TRIALS_FILE, Best, Trials
from tests.reproduction.test_engines import pretend_slurm
from tests.reproduction.test_recipe import recipe
from tests.reproduction.test_scripts import _SBATCH

_SEARCH = {"method": "kd", "search": {"parameters": {"kd.temperature": [1, 8, "log"]}, "trials": 2}}
_PATIENCE = 240.0


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with a row for each engine, whose data are prepared and whose teacher is trained."""
    pytest.importorskip("optuna", reason="the extra tune is not installed")
    content = recipe(
        dataset={"number": 901, "name": "Search", "format": "phantom", "cases": 6},
        settings={
            **{"epochs": 1, "iterations_per_epoch": 1, "batch_size": 2, "patch_size": [16, 32, 48], "workers": 0},
            **{"configuration": "3d_fullres", "device": "cpu"},
        },
        folds=["0"],
        teachers={"large": {"network": "unet_tiny"}},
        students={"tiny": {"network": "unet_tiny"}},
        methods=dict.fromkeys(("ray", "slurm", "written"), _SEARCH),
    )
    found = tmp_path_factory.mktemp("searches") / "toy.json"
    found.write_text(json.dumps(content))
    assert main([str(found), "--root", str(found.parent), "--only", "large*"]) == 0
    return found


def work_on(path: Path) -> Work:
    return open_recipe(path, ReproduceOptions(root=path.parent))


def search_of(work: Work, row: str) -> tuple[Node, Path]:
    """The node of a row's search, and the folder that it works in."""
    (node,) = [node for node in work.nodes.values() if node.kind == "search" and node.method == row]
    words = node.command({})
    return node, Path(words[words.index("--folder") + 1])


@contextmanager
def killed_once(work: Work, row: str) -> Iterator[None]:
    """SIGKILL for the row's search as soon as its first trial is kept, while something else waits for it."""
    node, folder = search_of(work, row)
    hit: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + _PATIENCE
        while not hit and time.monotonic() < deadline:
            time.sleep(0.05)
            if not (folder / TRIALS_FILE).exists() or not load(Trials, folder / TRIALS_FILE).trials:
                continue
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if process.cmdline()[2:4] == ["medkd", "tune"] and str(folder) in process.cmdline():
                        process.kill()
                        hit.append(process.pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    yield
    killer.join(1)
    assert len(hit) == 1 and "trial 1 of 2" not in work.state.output(node.name).read_text()


def check_row(path: Path, row: str, said: str) -> None:
    """The trials are whole, the student was told what they found, and the table says it."""
    work = work_on(path)
    node, folder = search_of(work, row)
    records = work.state.read()
    assert records[node.name].status == "done" and records[node.name].attempts == 2
    assert len(load(Trials, folder / TRIALS_FILE).trials) == 2
    value = load(Best, folder / BEST_FILE).parameters["kd.temperature"]
    (student,) = [name for name, other in work.nodes.items() if other.method == row and other.kind == "student"]
    assert records[student].status == "done" and f"kd.temperature={value}" in records[student].command
    (run,) = [entry for entry in (path.parent / "results").glob("*/*") if f"toy-tiny-{row}-s0" in entry.name]
    assert json.loads((run / "run.json").read_text())["method_parameters"] == {"kd.temperature": value}
    assert f"searched: {node.name}: kd.temperature = {value:.4g} (trial " in said


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_a_killed_search_goes_on_and_gives_its_student_what_it_found(
    engine: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip({"slurm": "submitit"}.get(engine, engine), reason="the extra cluster is not installed")
    pretend_slurm(tmp_path, monkeypatch)
    asked = ["--engine", engine, "--only", f"tiny-{engine}-*", "--memory", "0.5"]
    with killed_once(work_on(path), engine):
        assert main([str(path), "--root", str(path.parent), *asked]) == 0
    check_row(path, engine, capsys.readouterr().out)
    for script in (path.parent / "reproductions" / "toy" / "slurm").glob("*.sh"):
        told = script.read_text()
        assert "#SBATCH --mem=512M\n" in told and "--time" not in told  # of the search as of the trainings
    if engine == "ray":
        import ray

        ray.shutdown()


@pytest.mark.slow
def test_a_written_search_goes_on_and_gives_its_student_what_it_found(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(_SBATCH)
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PRETENDED", str(tmp_path))
    words = [str(path), "--root", str(path.parent)]
    assert main([*words, "--engine", "slurm", "--write", "--only", "tiny-written-*", "--memory", "3"]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.name for file in written] == ["01_prepare.sh", "02_search.sh", "03_student.sh", "submit.sh"]
    assert all("#SBATCH --mem=3072M\n" in file.read_text() for file in written[:-1])
    with killed_once(work_on(path), "written"):
        subprocess.run(["/bin/bash", str(written[-1])], check=True, capture_output=True)
    assert main([*words, "--status"]) == 0
    check_row(path, "written", capsys.readouterr().out)
    assert main([*words, "--engine", "slurm", "--write", "--only", "tiny-written-*"]) == 0
    assert capsys.readouterr().out == "nothing is left to do\n"
