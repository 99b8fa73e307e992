"""Strikes a command at a chosen moment: just before its N-th change of the file system, counted by an audit hook.

The command runs in a forked copy of this process, so that nothing is imported again. The moments are the same in every
run, and between two of them nothing on the disk changes: trying all of them tries every state that can be left behind.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Command = Callable[[Sequence[str]], int]
Fault = Literal["kill", "terminate", "interrupt", "disk full", "read-only", "no permission", "none"]

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
_REFUSALS = {"disk full": errno.ENOSPC, "read-only": errno.EROFS, "no permission": errno.EACCES}
_FREES_SPACE = {"os.remove", "os.rmdir"}


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        changes: how often it changed the file system.
        status: its exit status; negative for the signal that ended it.
        said: what it wrote to its standard error.
    """

    changes: int
    status: int
    said: str

    @property
    def is_one_sentence(self) -> bool:
        """Whether it ended with status 1 and said why in a line, without a traceback."""
        reasons = [line for line in self.said.splitlines() if line.startswith("error: ")]
        return self.status == 1 and len(reasons) == 1 and "Traceback" not in self.said


def run_until(command: Command, arguments: Sequence[str], below: Path, moment: int = 0, fault: Fault = "none") -> Ended:
    """Run a command in a process of its own and strike just before the ``moment``-th change of files below a folder.

    Args:
        command: a command's ``main``.
        arguments: its arguments.
        below: only changes below this folder count.
        moment: counted from 0; larger than their number lets the command end by itself.
        fault: a signal, or what the system answers from that moment on.

    Returns:
        How it ended.
    """
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.dup2(said.fileno(), 2)
            _child(command, arguments, _Striker(str(below), moment, fault, writer))
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            changes = len(pipe.read())
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return Ended(changes, os.waitstatus_to_exitcode(status), said.read().decode(errors="replace"))


class _Striker:
    """The audit hook: counts changes, and strikes at the chosen one."""

    def __init__(self, below: str, moment: int, fault: Fault, pipe: int) -> None:
        self._below, self._moment, self._fault, self._pipe = below, moment, fault, pipe
        self._changes, self._owner = 0, os.getpid()

    def __call__(self, event: str, details: tuple[Any, ...]) -> None:
        if os.getpid() != self._owner or not self._is_change(event, details):
            return
        if self._changes == self._moment and self._fault in _SIGNALS:
            os.kill(self._owner, _SIGNALS[self._fault])
        if self._changes >= self._moment and self._fault in _REFUSALS and event not in _FREES_SPACE:
            code = _REFUSALS[self._fault]
            raise OSError(code, os.strerror(code), str(details[0]))
        self._changes += 1
        os.write(self._pipe, b".")

    def _is_change(self, event: str, details: tuple[Any, ...]) -> bool:
        if event in _CHANGES:
            return str(details[0]).startswith(self._below)
        if event != "open" or not str(details[0]).startswith(self._below):
            return False
        mode, flags = details[1], details[2]
        if mode is None:
            return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        return any(letter in mode for letter in "wax+")


def _child(command: Command, arguments: Sequence[str], striker: _Striker) -> None:
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    sys.addaudithook(striker)
    status = 70
    try:
        status = command(arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
