"""The folder that an export makes: new, or one that an earlier export made."""

from __future__ import annotations

import shutil
from pathlib import Path

from medkd.core.errors import RunError
from medkd.runtime.package import RECORD


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
    """Move a finished export to its place; the one that it replaces is kept until that is done."""
    old = _set_aside(output)
    if output.exists():
        output.rename(old)
    try:
        folder.rename(output)
    except OSError:
        _put_back(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _put_back(output: Path) -> None:
    """Undo a replacement that was not finished, or finish the removal of what was replaced."""
    old = _set_aside(output)
    if output.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif (old / RECORD).is_file():
        old.rename(output)


def _set_aside(output: Path) -> Path:
    return output.with_name(f".{output.name}.replaced")
