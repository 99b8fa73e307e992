"""Finding a data set's folders, wherever below the given folder the archive put them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        found = [folder for folder in level if all((folder / name).is_dir() for name in names)]
        if len(found) > 1:
            raise DataError(
                f"{source} holds several such data sets ({', '.join(map(str, found))}); give one of these folders."
            )
        if found:
            return found[0]
        level = [child for folder in level for child in _folders(folder)]
    return None


def contents(folder: Path) -> str:
    """The names in a folder, for error texts."""
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") or "nothing"


def _folders(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith("."))
