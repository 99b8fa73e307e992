"""Runs something in a process of its own with little memory and little time, and tells how it ended."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from medkd.core.errors import MedkdError

SECONDS = 10.0  # of the processor, so that other programs on the machine do not count
_WAITING = 6.0  # times that may pass on the clock, for what waits without computing
MEMORY = 2 * 2**30


@dataclass(frozen=True)
class Outcome:
    """How it ended.

    Attributes:
        kind: ``done``, ``refused`` (one sentence), ``raised`` (anything else), ``hung`` or ``died``.
        said: the sentence, or the error.
        seconds: wall-clock time.
    """

    kind: str
    said: str
    seconds: float


def confined(work: Callable[[], object], seconds: float = SECONDS, memory: int = MEMORY) -> Outcome:
    """Run ``work`` in a forked process that may take ``memory`` bytes more than this one, for some seconds.

    Args:
        work: what to run; a :class:`MedkdError` is a refusal.
        seconds: of the processor until it is killed; on the clock :data:`_WAITING` times as many may pass.
        memory: bytes of address space beyond what this process has.
    """
    begun = time.monotonic()
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            os._exit(_child(work, memory))
        status = _wait(child, begun + _WAITING * seconds, seconds)
        said.seek(0)
        text = said.read().decode(errors="replace")
    took = time.monotonic() - begun
    if status is None:
        return Outcome("hung", f"nothing for {seconds:g} s", took)
    code = os.waitstatus_to_exitcode(status)
    kinds = {0: "done", 3: "refused", 4: "raised"}
    return Outcome(kinds.get(code, "died"), text or f"status {code}", took)


def _child(work: Callable[[], object], memory: int) -> int:
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    with open("/proc/self/statm", encoding="ascii") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (present + memory, present + memory))
    try:
        work()
    except MedkdError as error:
        os.write(2, str(error).encode(errors="replace"))
        return 3
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}".encode(errors="replace"))
        return 4
    return 0


def _wait(child: int, until: float, seconds: float) -> int | None:
    """The status of a child that ended in time; None for one that had to be killed."""
    process = psutil.Process(child)
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        used = process.cpu_times()
        if used.user + used.system > seconds:
            break
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
