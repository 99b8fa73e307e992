"""Processes that train together, as ``torchrun`` starts them, and an end to each."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from medkd.training.hooks import SaveLatest

COUNT = 2
LIMIT = 200.0  # seconds after which a process of these tests is killed, whatever it does


def free_port() -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@contextmanager
def processes(command: list[str], log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that find each other as ``torchrun``'s do; none of them is left behind."""
    port, started = free_port(), []
    try:
        for number in range(COUNT):
            own = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": COUNT, "LOCAL_WORLD_SIZE": COUNT}
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            env = {**os.environ, **{name: str(value) for name, value in {**own, **place}.items()}}
            with (log.parent / f"{log.name}.{number}").open("wb") as file:
                started.append(
                    subprocess.Popen([sys.executable, *command], env=env, stdout=file, stderr=subprocess.STDOUT)
                )
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def wait(started: list[subprocess.Popen[bytes]], seconds: float = LIMIT) -> list[int]:
    """The exit statuses; the test fails where one takes too long."""
    end = time.monotonic() + seconds
    for process in started:
        process.wait(max(end - time.monotonic(), 0.1))
    return [process.returncode for process in started]


def train_together(worker: str, trainings: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Have trainings done by processes that share each of them, one after another.

    Args:
        worker: module that does what stands in the file it is given.
        trainings: for the file.
        folder: of the file and of what the processes say.
    """
    plan, log = folder / "trainings.json", folder / "log"
    plan.write_text(json.dumps({"trainings": trainings}))
    with processes(["-m", worker, str(plan)], log) as started:
        assert wait(started) == [0] * COUNT, said(log)


def stop_after_first_epoch(run: Callable[[], object]) -> None:
    """Do a training of medkd's own loop until it has saved its first epoch, as Ctrl-C would end it."""

    def stop(self: SaveLatest, trainer: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SaveLatest, "after_save", stop)
        run()


def until(reached: Callable[[], bool], started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for something that processes do; the test fails where one of them ends before, or it takes too long."""
    end = time.monotonic() + LIMIT
    while not reached():
        assert time.monotonic() < end and all(process.poll() is None for process in started)
        time.sleep(0.02)


def said(log: Path) -> str:
    """All that the processes said."""
    return "\n".join(path.read_text() for path in sorted(log.parent.glob(f"{log.name}.*")))
