"""Many trainings side by side on one GPU: a queue of jobs in processes of their own, with an end that loses nothing.

A small network leaves most of a GPU idle, since starting its operations takes longer than computing them. So one
process per core trains with one thread each. Libraries are imported once, before the processes are forked; the GPU is
first touched in the children.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a GPU must not touch it before the fork
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A function call in a process of its own.

    Attributes:
        name: unlike any other's; names the log.
        call: what is called; a second call goes on where the first was stopped.
        after: names of the jobs that must be done before.
    """

    name: str
    call: Callable[[], Any]
    after: tuple[str, ...] = ()


@dataclass
class Queue:
    """Jobs in the order in which they are wanted.

    Args:
        jobs: all of them.
        slots: processes at a time.
        logs: folder for one log per job.
        end: on the clock of :func:`time.monotonic`; what runs then is stopped.
        finished: called in this process after each job with its name, whether it succeeded and its seconds.
    """

    jobs: Sequence[Job]
    slots: int
    logs: Path
    end: float
    finished: Callable[[str, bool, float], None]
    done: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Run all jobs, or as many as there is time for."""
        waiting, running = list(self.jobs), dict[str, tuple[Any, float]]()
        self.logs.mkdir(parents=True, exist_ok=True)
        while waiting or running:
            self._collect(running)
            if time.monotonic() > self.end:
                self._stop(running)
                return
            waiting = self._start(waiting, running)
            if not running and not waiting:
                return
            time.sleep(0.2)

    def _start(self, waiting: list[Job], running: dict[str, tuple[Any, float]]) -> list[Job]:
        """Fill the free slots; what can never run any more is left out of what is returned."""
        left = []
        for job in waiting:
            if self.failed & set(job.after):
                self.failed.add(job.name)
                self.finished(job.name, False, 0.0)
            elif len(running) < self.slots and self.done >= set(job.after):
                process = _FORK.Process(target=_child, args=(job, self.logs / f"{job.name}.log"))
                process.start()
                running[job.name] = (process, time.monotonic())
            else:
                left.append(job)
        return left

    def _collect(self, running: dict[str, tuple[Any, float]]) -> None:
        ended = [name for name, (process, _) in running.items() if not process.is_alive()]
        for name in ended:
            process, begun = running.pop(name)
            process.join()
            succeeded = process.exitcode == 0
            (self.done if succeeded else self.failed).add(name)
            self.finished(name, succeeded, time.monotonic() - begun)

    def _stop(self, running: dict[str, tuple[Any, float]]) -> None:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join(timeout=5)


def _child(job: Job, log: Path) -> None:
    """Call the job with its output in its log; an exception shows there, and in the exit status."""
    with log.open("a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", force=True)
        torch.set_num_threads(1)
        job.call()
