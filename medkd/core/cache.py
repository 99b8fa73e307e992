"""The user's cache: files that may be lost at any time and are then made anew."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from medkd.core.files import lasting_scratch_folder


def cache_folder(name: str) -> Path:
    """A folder of medkd's own in the user's cache (``$XDG_CACHE_HOME/medkd``, else ``~/.cache/medkd``), or among the
    temporary files where that is read-only.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medkd"
        (cache / name).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache / name):
            return cache / name
    except (OSError, RuntimeError):  # RuntimeError: nobody knows where the user is at home
        private = lasting_scratch_folder() / name
        private.mkdir()
        return private


def forget_oldest(folder: Path, kept: int) -> None:
    """Remove all but the files of a cache that were used last; :func:`used` says when that was."""
    known = []
    for path in folder.iterdir():
        with suppress(OSError):  # another process removes, too
            if not path.name.startswith("."):
                known.append((path.stat().st_mtime, path))
    for _, path in sorted(known, reverse=True)[kept:]:
        with suppress(OSError):
            path.unlink()


def used(path: Path) -> None:
    """Note that a file of a cache was used now."""
    with suppress(OSError):
        os.utime(path)
