"""Strikes a command at a chosen moment: just before its N-th change of the file system, counted by an audit hook.

The command runs in a forked copy of this process, so that nothing is imported again. The moments are the same in every
run, and between two of them nothing on the disk changes: trying all of them tries every state that can be left behind.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import importlib
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Command = Callable[[Sequence[str]], int]
Fault = Literal["kill", "terminate", "interrupt", "disk full", "read-only", "no permission", "cut short", "none"]

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
_REFUSALS = {"disk full": errno.ENOSPC, "read-only": errno.EROFS, "no permission": errno.EACCES}
TEMPORARY = "tmp"
"""Folder below the one that is watched, in which temporary files of the system's lie."""
_MOST_SAID = 2**20
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
        """Whether it ended with status 1 and said why in a line, without a traceback; or in a line per scan, where it
        went on with the others.
        """
        lines = self.said.splitlines()
        reasons = [line for line in lines if line.startswith("error: ")]
        scans = [line for line in lines if line.startswith("Writing ") and " failed: " in line]
        is_said = len(reasons) == 1 or (not reasons and bool(scans))
        return self.status == 1 and is_said and "Traceback" not in self.said


def run_until(command: Command, arguments: Sequence[str], below: Path, moment: int = 0, fault: Fault = "none") -> Ended:
    """Run a command in a process of its own and strike just before the ``moment``-th change of files below a folder.

    What the command takes from the system's folder for temporary files lies in ``below``, too, so that it counts.

    Args:
        command: a command's ``main``.
        arguments: its arguments.
        below: only changes below this folder count.
        moment: counted from 0; larger than their number lets the command end by itself. Of ``cut short`` it is the
            number of bytes that a file can have: writing more fails, in libraries of C++ as well.
        fault: a signal, or what the system answers from that moment on.

    Returns:
        How it ended.
    """
    reader, writer = os.pipe()
    words, said = os.pipe()  # no file, which could not grow either where files are cut short
    fcntl.fcntl(said, fcntl.F_SETPIPE_SZ, _MOST_SAID)
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.dup2(said, 2)
            _confine(below, moment if fault == "cut short" else None)
            _child(command, arguments, _Striker(str(below), moment, fault, writer))
        finally:
            os._exit(71)  # never on with the tests of the process that it is a copy of
    os.close(writer)
    os.close(said)
    try:
        with os.fdopen(reader, "rb") as pipe:
            changes = len(pipe.read())
    except BaseException:  # the test's time is up: the copy must not outlive it
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    with os.fdopen(words, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    return Ended(changes, os.waitstatus_to_exitcode(status), text)


def warm_up(command: Command, arguments: Sequence[str], below: Path) -> None:
    """Import what a command imports, so that its forked copies need not; it runs once, in a process of its own."""

    def told(words: Sequence[str]) -> int:
        status = command(words)
        (below / "modules").write_text("\n".join(sys.modules))
        return status

    assert run_until(told, arguments, below).status == 0
    for name in (below / "modules").read_text().split("\n"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


class _Striker:
    """The audit hook: counts changes, and strikes at the chosen one."""

    def __init__(self, below: str, moment: int, fault: Fault, pipe: int) -> None:
        self._below, self._moment, self._fault, self._pipe = below, moment, fault, pipe
        self._changes, self._owner = 0, os.getpid()

    def __call__(self, event: str, details: tuple[Any, ...]) -> None:
        if os.getpid() != self._owner or not self._is_change(event, details):
            return
        if self._changes == self._moment and self._fault in _SIGNALS:
            self._changes += 1  # an interrupt ends this function, and comes once
            os.kill(self._owner, _SIGNALS[self._fault])
            return
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


def _confine(below: Path, most_bytes: int | None) -> None:
    """Keep temporary files below a folder, draw no pictures into files, and let no file grow beyond some bytes."""
    from matplotlib.backend_bases import FigureCanvasBase

    tempfile.tempdir = str(below / TEMPORARY)
    os.makedirs(tempfile.tempdir, exist_ok=True)
    draw = FigureCanvasBase.print_figure

    def print_figure(canvas: FigureCanvasBase, filename: Any, *more: Any, **options: Any) -> Any:
        """Drawing takes most of a tiny training's time, and that a picture is there is all that is compared."""
        if isinstance(filename, (str, Path)):
            return Path(filename).write_bytes(b"a picture")
        return draw(canvas, filename, *more, **options)

    FigureCanvasBase.print_figure = print_figure  # type: ignore[method-assign]
    if most_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))


def _child(command: Command, arguments: Sequence[str], striker: _Striker) -> None:
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    atexit._clear()  # what this process's parent does at its end is not the command's
    sys.addaudithook(striker)
    status = 70
    try:
        status = command(arguments)
        atexit._run_exitfuncs()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
