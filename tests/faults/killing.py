"""Kills a command at a chosen moment: just before its N-th change of the file system, counted by an audit hook.

The command runs in a forked copy of this process, so that nothing is imported again. The moments are the same in every
run, and between two of them nothing on the disk changes: trying all of them tries every state that a kill can leave.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Command = Callable[[Sequence[str]], int]

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_NEVER = 10**9


def _is_change(event: str, arguments: tuple[Any, ...], below: str) -> bool:
    if event in _CHANGES:
        return str(arguments[0]).startswith(below)
    if event != "open" or not str(arguments[0]).startswith(below):
        return False
    mode, flags = arguments[1], arguments[2]
    if mode is None:
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return any(letter in mode for letter in "wax+")


def run_until(command: Command, arguments: Sequence[str], below: Path, moment: int = _NEVER) -> tuple[bool, int]:
    """Run a command in a process of its own and kill it just before the ``moment``-th change of files below a folder.

    Args:
        command: a command's ``main``.
        arguments: its arguments.
        below: only changes below this folder count.
        moment: counted from 0; larger than their number lets the command end by itself.

    Returns:
        Whether it was killed, and how many changes there were up to then.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(command, arguments, str(below), moment, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        changes = len(pipe.read())
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True, changes
    assert os.WEXITSTATUS(status) == 0, f"{arguments} ended with {os.WEXITSTATUS(status)}"
    return False, changes


def _child(command: Command, arguments: Sequence[str], below: str, moment: int, pipe: int) -> None:
    changes, owner = 0, os.getpid()

    def count(event: str, details: tuple[Any, ...]) -> None:
        nonlocal changes
        if os.getpid() != owner or not _is_change(event, details, below):
            return
        if changes == moment:
            os.kill(owner, signal.SIGKILL)
        changes += 1
        os.write(pipe, b".")

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    sys.addaudithook(count)
    status = 70
    try:
        status = command(arguments)
    finally:
        os._exit(status)
