"""The folder that an export makes: new, or one that an earlier export made."""

from __future__ import annotations

from pathlib import Path

from medkd.core.errors import RunError
from medkd.runtime.package import RECORD


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a folder that is in use.

    Raises:
        RunError: it holds something else, or an exported model that shall not be replaced.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / RECORD).is_file():
        raise RunError(f"{output} is in use and holds no exported model; choose a new folder.")
    if not overwrite:
        raise RunError(f"{output} holds an exported model already; give --overwrite to replace it.")
