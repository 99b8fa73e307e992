"""Models that were sent as one ``.zip``: checked, unpacked into a folder that lives as long as the process."""

from __future__ import annotations

import errno
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from medkd.core.errors import RunError
from medkd.core.files import lasting_scratch_folder

ENDING = ".zip"
MOST_ENTRIES = 500
MOST_BYTES = 16 * 2**30
MOST_RATIO = 200
"""Times that an entry may grow; weights hardly shrink, and descriptions by less than this."""

_SMALL = 2**20  # entries that may grow by any ratio
_BLOCK = 2**20
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError, RuntimeError)
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


def _unpack(path: Path) -> Path:
    place = lasting_scratch_folder()
    folder = place / (path.stem or "model")
    try:
        folder.mkdir()
        with zipfile.ZipFile(path) as archive:
            _check_entries(path, archive.infolist())
            for entry in archive.infolist():
                _extract(path, archive, entry, folder)
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if isinstance(error, _DAMAGE) or (isinstance(error, OSError) and error.errno == errno.EINVAL):
            raise RunError(f"{path} is damaged or no zip ({error}); copy it again, or pack the model again.") from error
        raise
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse what no packed model holds, before anything is written."""
    if len(entries) > MOST_ENTRIES:
        raise RunError(f"{path} holds {len(entries)} entries, a model at most {MOST_ENTRIES}; is it a model?")
    names: set[str] = set()
    for entry in entries:
        _check_name(path, entry.filename)
        _check_form(path, entry)
        name = entry.filename.rstrip("/").casefold()
        if name in names:
            raise RunError(f"{path} holds '{entry.filename}' twice; pack the model again.")
        names.add(name)
    total = sum(entry.file_size for entry in entries)
    if total > MOST_BYTES:
        raise RunError(f"{path} would unpack to {total / 2**30:.3g} GiB, a model to {MOST_BYTES / 2**30:.3g} at most.")


def _check_name(path: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    leaves = name.startswith("/") or ".." in parts or "\\" in name or ":" in name or "\0" in name
    if leaves or not parts:
        raise RunError(f"{path} holds the entry '{name}', which may lie outside of the folder; it is not unpacked.")


def _check_form(path: Path, entry: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise RunError(f"{path} holds '{entry.filename}', which is a link or no plain file; it is not unpacked.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RunError(f"{path} is damaged or no zip that medkd wrote ('{entry.filename}'); pack the model again.")
    if entry.flag_bits & 1:
        raise RunError(f"{path} is encrypted ('{entry.filename}'); unpack it yourself and give the folder.")
    if entry.file_size > max(_SMALL, MOST_RATIO * entry.compress_size):
        raise RunError(
            f"{path}: '{entry.filename}' would grow from {entry.compress_size} to {entry.file_size} bytes, which no "
            "part of a model does; it is not unpacked."
        )


def _extract(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    target = folder.joinpath(*PurePosixPath(entry.filename).parts)
    if entry.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    left = entry.file_size
    with archive.open(entry) as source, target.open("xb") as file:
        while block := source.read(_BLOCK):
            left -= len(block)
            if left < 0:
                raise RunError(f"{path}: '{entry.filename}' is larger than it says; it is not unpacked.")
            file.write(block)
