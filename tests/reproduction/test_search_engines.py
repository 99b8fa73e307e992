"""A search is a run like others on every engine: killed on the way it goes on, and its student gets what it found."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from medkd.cli.reproduce import main
from medkd.core.serial import load
from medkd.reproduction.graph import Node
from medkd.reproduction.reproduce import ReproduceOptions, Work, open_recipe
from medkd.reproduction.search import BEST_FILE, TRIALS_FILE, Best, Trials
from tests.reproduction import pretended_medkd
from tests.reproduction.test_engines import pretend_slurm
from tests.reproduction.test_recipe import recipe
from tests.shares import of_today
from tests.training.builders import make_dataset

_PATIENCE = 300.0
_INSIDE = "MEDKD_TEST_CLUSTERS"  # is set in the processes of their own


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a search, on data that are prepared; nothing but the search is more than pretended."""
    pytest.importorskip("optuna", reason="the extra tune is not installed")
    make_dataset(tmp_path)
    search = {"parameters": {"kd.temperature": [1, 8, "log"]}, "trials": 2}
    content = recipe(
        dataset={"number": 900, "name": "Boxes", "format": "msd"},
        settings={"configuration": "3d_fullres", "device": "cpu", "workers": 0},
        folds=["0"],
        teachers={"large": {"network": "unet_tiny"}},
        students={"tiny": {"network": "unet_tiny"}},
        methods={"found": {"method": "kd", "search": search}},
    )
    found = tmp_path / "toy.json"
    found.write_text(json.dumps(content))
    python = tmp_path / "python"
    words = [sys.executable, str(Path(pretended_medkd.__file__)), sys.executable]
    copy = tmp_path / "python.py"
    copy.write_text(Path(words[1]).read_text())
    python.write_text(f'#!/bin/bash\nexec {shlex.join([words[0], str(copy), words[2]])} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return found


@contextmanager
def killed_once(work: Work) -> Iterator[None]:
    """SIGKILL for the search as soon as its first trial is kept, while something else waits for it."""
    node, folder = search_of(work)
    hit: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + _PATIENCE
        while not hit and time.monotonic() < deadline:
            time.sleep(0.02)
            if not (folder / TRIALS_FILE).exists() or not load(Trials, folder / TRIALS_FILE).trials:
                continue
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    words = process.cmdline()
                    if "tune" in words and str(folder) in words:
                        process.kill()
                        hit.append(process.pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    yield
    killer.join(1)
    assert len(hit) == 1 and "trial 1 of 2" not in work.state.output(node.name).read_text()


def work_on(path: Path) -> Work:
    return open_recipe(path, ReproduceOptions(root=path.parent))


def search_of(work: Work) -> tuple[Node, Path]:
    """The node of the search, and the folder that it works in."""
    (node,) = [node for node in work.nodes.values() if node.kind == "search"]
    words = node.command({})
    return node, Path(words[words.index("--folder") + 1])


def check_found(path: Path, said: str) -> None:
    """The trials are whole, the student was told what they found, and the table says it."""
    work = work_on(path)
    node, folder = search_of(work)
    records = work.state.read()
    assert all(records[name].status == "done" for name in work.nodes) and records[node.name].attempts == 2
    assert len(load(Trials, folder / TRIALS_FILE).trials) == 2
    best = load(Best, folder / BEST_FILE)
    assert best.trial == 1
    (told,) = (path.parent / "results").glob("*/run__toy-tiny-found-s0/fold_0/told")
    assert f"--set\nkd.temperature={best.parameters['kd.temperature']}\n" in told.read_text()
    assert f"searched: {node.name}: kd.temperature = {best.parameters['kd.temperature']:.4g} (trial 1 of 2" in said


@pytest.mark.slow
@pytest.mark.parametrize("engine", of_today(["ray", "slurm"], 2))
def test_it_is_so_on_a_cluster(engine: str) -> None:
    """In a process of its own, since a driver of Ray leaves its threads and files in the one that had it."""
    pytest.importorskip("optuna", reason="the extra tune is not installed")
    if find_spec({"slurm": "submitit"}.get(engine, engine)) is None:
        pytest.skip("the extra cluster is not installed")
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", __file__, "-k", f"goes_on and {engine}"]
    ended = subprocess.run(
        line, env={**os.environ, _INSIDE: "1"}, cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", *(["ray", "slurm"] if _INSIDE in os.environ else [])])
def test_a_killed_search_goes_on_and_gives_its_student_what_it_found(
    engine: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_slurm(tmp_path, monkeypatch)
    with killed_once(work_on(path)):
        assert main([str(path), "--root", str(tmp_path), "--engine", engine, "--memory", "0.5"]) == 0
    check_found(path, capsys.readouterr().out)
    scripts = list((tmp_path / "reproductions" / "toy" / "slurm").glob("*.sh"))
    assert bool(scripts) == (engine == "slurm")
    for script in scripts:  # of the search as of the trainings
        told = script.read_text()
        assert "#SBATCH --mem=512M\n" in told and "--time" not in told
