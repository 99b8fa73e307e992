"""Finding a data set's folders, wherever below the given folder the archive put them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from medkd.core.errors import DataError


def existing_folder(source: Path, format: str) -> Path:
    """``source`` as a folder.

    Raises:
        DataError: it does not exist or is a file.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f"The source {source} does not exist.")
    if not source.is_dir():
        raise DataError(
            f"{source} is a file; unpack the download and give its folder (medkd_convert {format} --help shows the "
            "layout)."
        )
    return source


def find_parent(source: Path, names: Sequence[str], depth: int = 4) -> Path | None:
    """The folder nearest to ``source``, itself included, that holds sub-folders of all these names.

    Raises:
        DataError: two folders equally near hold them.
    """
    level = [Path(source)]
    for _ in range(depth + 1):
        found = [folder for folder in level if _holds(folder, names)]
        if len(found) > 1:
            raise DataError(
                f"{source} holds several such data sets ({', '.join(map(str, found))}); give one of these folders."
            )
        if found:
            return found[0]
        level = list(chain.from_iterable(map(_folders, level)))
    return None


def contents(folder: Path) -> str:
    """The names in a folder, for error texts."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") or "nothing"


def _holds(folder: Path, names: Sequence[str]) -> bool:
    """Whether a folder has sub-folders of all these names."""
    there = [folder / name for name in names]
    return all(map(Path.is_dir, there))


def _folders(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield path
