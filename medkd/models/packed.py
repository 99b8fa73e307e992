"""Models that were sent as one ``.zip``: checked, unpacked into a folder that lives as long as the process."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from medkd.core.archives import ArchiveRules, check_directory, check_entries, extract, is_damage
from medkd.core.errors import MedkdError, RunError
from medkd.core.files import lasting_scratch_folder

ENDING = ".zip"
RULES = ArchiveRules(
    holds="a model",
    remedy="pack the model again",
    error=RunError,
    entries=500,
    size=16 * 2**30,
    ratio=200,  # weights hardly shrink, and descriptions by less than this
)
_OF_MACOS = "__MACOSX"  # which that system's archiver puts beside a folder
_unpacked: dict[tuple[str, int, int], Path] = {}


def unpacked(path: Path) -> Path:
    """The folder of a model: the path itself, or of a ``.zip`` the folder that it was unpacked into.

    Raises:
        RunError: the file is no zip, is damaged, or holds an entry that leaves the folder, a link, or more than a model
            has; nothing of it is left.
    """
    path = Path(path)
    if path.suffix.lower() != ENDING or not path.is_file():
        return path
    facts = path.stat()
    key = (str(path.resolve()), facts.st_mtime_ns, facts.st_size)
    if key not in _unpacked:
        _unpacked[key] = _unpack(path)
    return _unpacked[key]


@contextmanager
def named_as_given() -> Iterator[None]:
    """Errors about what a ``.zip`` was unpacked into name the ``.zip``: nobody knows the folder, which is soon gone."""
    try:
        yield
    except MedkdError as error:
        text = str(error)
        for (archive, _, _), folder in _unpacked.items():
            text = text.replace(str(folder), archive)
        if text == str(error):
            raise
        raise type(error)(text) from error


def _unpack(path: Path) -> Path:
    place = lasting_scratch_folder()
    folder = place / (path.stem or "model")
    try:
        folder.mkdir()
        check_directory(path, path, RULES)
        with zipfile.ZipFile(path) as archive:
            check_entries(path, archive.infolist(), RULES)
            for entry in archive.infolist():
                _extract(path, archive, entry, folder)
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if is_damage(error):
            raise RunError(f"{path} is damaged or no zip ({error}); copy it again, or pack the model again.") from error
        raise
    inside = [part for part in folder.iterdir() if part.name != _OF_MACOS]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _extract(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    target = folder.joinpath(*PurePosixPath(entry.filename).parts)
    if entry.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    extract(archive, entry, target, path, RULES)
