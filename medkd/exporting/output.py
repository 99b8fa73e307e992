"""The folder that an export makes: new, or one that an earlier export made."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from medkd.core.errors import RunError
from medkd.core.files import scratch_folder
from medkd.models.base import ModelFolder
from medkd.models.own_run import OwnRun
from medkd.runtime.package import RECORD

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2


def make_room(output: Path) -> None:
    """Make the folder in which an export is made.

    Raises:
        RunError: nothing can be written there.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(output.parent):
            return
    except OSError as error:
        raise RunError(
            f"Cannot write {output}: {error.strerror or error}; choose a place that can be written to."
        ) from error


def made_of(source: ModelFolder[Any]) -> dict[str, str]:
    """The name of the model that is exported, and of a run of medkd the one of its folder, by which reports know it."""
    return {"name": source.name, **({"run": source.path.name} if isinstance(source, OwnRun) else {})}


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a folder that is in use; one that an export was about to replace when it was killed is put back first.

    Raises:
        RunError: it holds something else, or an exported model that shall not be replaced.
    """
    _put_back(output)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / RECORD).is_file():
        raise RunError(f"{output} is in use and holds no exported model; choose a new folder.")
    if not overwrite:
        raise RunError(f"{output} holds an exported model already; give --overwrite to replace it.")


def put_in_place(folder: Path, output: Path) -> None:
    """Move a finished export to its place: at every moment there is the one that it replaces, or the new one.

    Where the system cannot exchange two folders in one step, the older one stands aside meanwhile, and
    :func:`check_output` puts it back after a kill.
    """
    if output.exists() and exchange(folder, output):
        shutil.rmtree(folder, ignore_errors=True)
        return
    old = _set_aside(output)
    if output.exists():
        output.rename(old)
    try:
        folder.rename(output)
    except OSError:
        _put_back(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders of a disk change their names in one step; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _put_back(output: Path) -> None:
    """Undo a replacement that was not finished, or finish the removal of what was replaced."""
    old = _set_aside(output)
    if output.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif (old / RECORD).is_file():
        old.rename(output)


def _set_aside(output: Path) -> Path:
    return output.with_name(f".{output.name}.replaced")
