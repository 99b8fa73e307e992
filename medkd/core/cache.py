"""The user's cache: files that may be lost at any time and are then made anew."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from medkd.core.files import lasting_scratch_folder


def cache_folder(name: str) -> Path:
    """A folder of medkd's own in the user's cache (``$XDG_CACHE_HOME/medkd``, else ``~/.cache/medkd``), or among the
    temporary files where that is read-only.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medkd" / name
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: nobody knows where the user is at home
        return _private(name)


@cache
def _private(name: str) -> Path:
    """A folder of this process, until it ends."""
    private = lasting_scratch_folder() / name
    private.mkdir()
    return private


def forget_oldest(folder: Path, most_bytes: int) -> None:
    """Keep of a cache what was used last (:func:`used`): as many bytes as given, and at least one entry.

    Files that differ by their ending only are one entry.
    """
    taken = 0
    for place, (_, size, paths) in enumerate(sorted(_entries(folder), reverse=True)):
        taken += size
        if place and taken > most_bytes:
            for path in paths:
                path.unlink(missing_ok=True)


def _entries(folder: Path) -> list[tuple[float, int, list[Path]]]:
    """When each entry of a cache was used last, its bytes, and its files."""
    entries: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        if not path.name.startswith("."):
            entries.setdefault(path.stem, []).append(path)
    known = []
    for paths in entries.values():
        with suppress(OSError):  # another process removes, too
            found = [path.stat() for path in paths]
            known.append((max(one.st_mtime for one in found), sum(one.st_size for one in found), paths))
    return known


def used(path: Path) -> None:
    """Note that an entry of a cache was used now."""
    for part in path.parent.glob(f"{path.stem}.*"):
        with suppress(OSError):
            os.utime(part)
