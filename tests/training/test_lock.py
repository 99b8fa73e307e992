"""Two trainings of one fold at once: the second is refused in a sentence; what a kill left is taken over."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from medkd.core.errors import DataError, RunError
from medkd.training import lock
from medkd.training.lock import fold_lock


def write(folder: Path, **changes: object) -> Path:
    """A lock of this process, but for the changes."""
    file = folder.parent / f".{folder.name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    mine = {"host": platform.node(), "process": os.getpid(), "started": psutil.Process().create_time()}
    file.write_text(json.dumps({**mine, **changes}))
    return file


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_another_process_is_named_and_its_lock_is_left(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    started = psutil.Process(sleeper.pid).create_time()
    file = write(tmp_path / "run/fold_0", process=sleeper.pid, started=started)
    before = file.read_text()
    with (
        pytest.raises(RunError, match=rf"fold_0 is being trained by the process {sleeper.pid}; wait") as caught,
        fold_lock(tmp_path / "run/fold_0"),
    ):
        pytest.fail("the lock was not held")
    assert "\n" not in str(caught.value) and file.read_text() == before
    with fold_lock(tmp_path / "run/fold_1"):  # another fold is free
        pass


def test_a_killed_process_leaves_a_lock_that_is_taken_over(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    started = psutil.Process(sleeper.pid).create_time()
    folder = tmp_path / "run/fold_0"
    file = write(folder, process=sleeper.pid, started=started)
    sleeper.kill()
    sleeper.wait()
    with fold_lock(folder):
        assert json.loads(file.read_text())["process"] == os.getpid()
    assert not file.exists()


@pytest.mark.parametrize("content", ["", "{", '{"host": "x"}', "[]", '{"host": 1, "process": "a", "started": null}'])
def test_half_a_lock_is_taken_over(tmp_path: Path, content: str) -> None:
    file = write(tmp_path / "run/fold_0")
    file.write_text(content)
    with fold_lock(tmp_path / "run/fold_0"):
        assert json.loads(file.read_text())["process"] == os.getpid()


def test_a_number_that_another_process_has_by_now_does_not_hold_it(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    file = write(tmp_path / "run/fold_0", process=sleeper.pid, started=12345.0)
    with fold_lock(tmp_path / "run/fold_0"):
        assert json.loads(file.read_text())["process"] == os.getpid()


def test_another_machine_holds_it_while_it_touches_it(tmp_path: Path) -> None:
    file = write(tmp_path / "run/fold_0", host="elsewhere", process=1)
    with pytest.raises(RunError, match="process 1 on elsewhere"), fold_lock(tmp_path / "run/fold_0"):
        raise AssertionError("the lock was not held")
    old = time.time() - 3600
    os.utime(file, (old, old))
    with fold_lock(tmp_path / "run/fold_0"):
        pass


def test_nothing_is_left_but_what_was_there(tmp_path: Path) -> None:
    with fold_lock(tmp_path / "results/run/fold_0"):
        assert (tmp_path / "results/run/.fold_0.lock").exists()
    assert list(tmp_path.iterdir()) == []
    with fold_lock(tmp_path / "results/run/fold_0"):
        (tmp_path / "results/run/run.json").touch()
    assert [p.name for p in (tmp_path / "results/run").iterdir()] == ["run.json"]


def test_a_lock_that_cannot_be_written_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(holder: object) -> dict[str, object]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock, "asdict", full)
    with (
        pytest.raises(DataError, match="No space left on device; choose a folder"),
        fold_lock(tmp_path / "run" / "fold_0"),
    ):
        raise AssertionError("held")
    assert not list(tmp_path.iterdir())
