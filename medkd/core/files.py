"""Atomic writing and friendly reading of small files."""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from medkd.core.errors import DataError, MedkdError

LARGEST_TEXT = 1 << 30  # bytes
_MISUNDERSTOOD = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, MemoryError)
_STALE_SECONDS = 24 * 3600.0  # temporary files of other machines, or of older versions, whose process cannot be asked
_MINE = re.compile(r"(\.tmp|medkd)-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-")
_OF_OLDER_VERSIONS = re.compile(r"\.tmp-[a-z0-9_]{8}-.")
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_swept: set[Path] = set()


def check_file(path: Path) -> None:
    """See to it that ``path`` is a file that can be read to its end: not a named pipe or a device, which hang.

    Raises:
        DataError: it is missing, a link to nothing, a folder, or none of these; the text says which.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a NUL in the name
        raise DataError(f"Cannot read {path!s:.200}: {error}.".replace("\0", "\\0")) from error
    except OSError as error:
        if path.is_symlink():
            raise DataError(
                f"{path} is a link to {os.readlink(path)}, which cannot be read ({error.strerror}); mend or remove the "
                "link."
            ) from error
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"Expected a file, but {path} is {_kind(mode)}; replace or remove it.")


def is_file(path: Path) -> bool:
    """Whether :func:`check_file` has nothing to say."""
    try:
        check_file(path)
    except DataError:
        return False
    return True


def lies_within(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, links and ``..`` followed; one that no file can have lies nowhere."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle, a NUL
        return False


def _kind(mode: int) -> str:
    kinds = {
        "a folder": stat.S_ISDIR,
        "a named pipe": stat.S_ISFIFO,
        "a device": stat.S_ISCHR,
        "a disk": stat.S_ISBLK,
        "a socket": stat.S_ISSOCK,
    }
    for name, holds in kinds.items():
        if holds(mode):
            return name
    return "something else"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; it is renamed to ``path`` when the block ends without an error.

    The temporary name keeps all suffixes (``.nii.gz``), so that writers that look at them work. On an error nothing is
    left behind and an older ``path`` stays as it was. What a killed process left in the folder is removed when this
    process writes there for the first time, see :func:`sweep`.

    Raises:
        DataError: the folder cannot be created or written to (read-only, full disk), whatever the writer calls it.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        handle, name = tempfile.mkstemp(prefix=temporary_prefix(), suffix="-" + path.name, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise DataError(
            f"Cannot write {path}: {error.strerror or error}; choose a folder that can be written to."
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"Writing {path} failed: {error.strerror or error}; nothing was changed there.") from error
    except MedkdError:
        raise
    except Exception as error:  # libraries in other languages have errors of their own for a full disk
        reason = refusal_in(error)
        if reason is None:
            raise
        raise DataError(f"Writing {path} failed: {reason}; nothing was changed there.") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """See that a file could be written, before anything is computed for it; nothing is made.

    Raises:
        DataError: there is a folder of its name, or none may be made in the folder that it is for.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"Cannot write {path}: it is a folder; give a file in it.")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "may not be written to" if there.is_dir() else "is no folder"
        raise DataError(f"Cannot write {path}: {there} {what}; choose a folder that can be written to.")


def refusal_in(error: BaseException) -> str | None:
    """What the system refused, in its words, where they are part of an error's text or of its cause's."""
    text = str(error)
    for code in _REFUSALS:
        if os.strerror(code) in text:
            return os.strerror(code)
    cause = error.__cause__ or error.__context__
    return None if cause is None else refusal_in(cause)


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A temporary folder in an existing one, removed at the end; what a killed process left there is removed first."""
    sweep(beside)
    place = Path(tempfile.mkdtemp(prefix=temporary_prefix(), dir=beside))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def lasting_scratch_folder() -> Path:
    """A folder among the system's temporary files that is removed at this process's end, or, where that was killed,
    by the next process that makes one.
    """
    system = Path(tempfile.gettempdir())
    for left in system.glob(f"medkd-{_host()}-*"):
        if _is_abandoned(left):
            _remove(left)
    place = Path(tempfile.mkdtemp(prefix=f"medkd-{_host()}-{os.getpid()}-"))
    atexit.register(_clear, place)
    return place


def _clear(place: Path) -> None:
    """Remove a folder at the end; of one who interrupts that the next process removes the rest."""
    with suppress(KeyboardInterrupt):
        shutil.rmtree(place, ignore_errors=True)


def temporary_prefix() -> str:
    """How the names of this process's temporary files begin, by which :func:`sweep` knows whose they are."""
    return f".tmp-{_host()}-{os.getpid()}-"


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left in a folder; once per process and folder.

    A file belongs to a killed process if its name gives this machine and a process that is gone, or if it is a day old
    and nobody here can tell.
    """
    if folder in _swept:
        return
    _swept.add(folder)
    for left in folder.glob(".tmp-*"):
        if _is_abandoned(left):
            _remove(left)


def _remove(left: Path) -> None:
    """Delete a file, link or folder, as far as the system lets."""
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


def _is_abandoned(temporary: Path) -> bool:
    named = _MINE.match(temporary.name)
    if named is not None and named["host"] == _host():
        return not process_lives(int(named["process"]))
    if named is None and (temporary.is_dir() or not _OF_OLDER_VERSIONS.match(temporary.name)):
        return False  # somebody else's
    try:
        return time.time() - temporary.lstat().st_mtime > _STALE_SECONDS
    except FileNotFoundError:
        return False


def process_lives(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@cache
def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def write_json(path: Path, data: Any, *, indent: int | None = 2) -> None:
    """Write ``data`` as JSON atomically, keys in the given order (region order in ``dataset.json`` matters)."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def understood(path: Path, what: str, remedy: str = "make it anew") -> Iterator[None]:
    """What goes wrong inside, where the content of a file is taken apart, is the file's fault: one sentence names it.

    Args:
        path: the file.
        what: it should be, for example ``"a summary.json of medkd or nnU-Net"``.
        remedy: what to do.

    Raises:
        DataError: something was missing, or of another form.
    """
    try:
        yield
    except _MISUNDERSTOOD as error:
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise DataError(f"{path} is not {what} ({text:.200}); {remedy}.") from error


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file with one JSON value per line; from the first line on that was cut off they are left out.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    values = []
    for line in read_text(path).splitlines():
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    return values


def read_text(path: Path) -> str:
    """Read a text file, with or without a byte order mark.

    Raises:
        DataError: it is missing, no regular file, no text, or larger than :data:`LARGEST_TEXT`.
    """
    path = Path(path)
    try:
        if path.exists():
            check_file(path)
            size = path.stat().st_size
            if size > LARGEST_TEXT:
                raise DataError(f"{path} has {size / 1e9:.3g} GB, too much for a text file; mend it or make it anew.")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"Expected the file {path}, but it does not exist.") from error
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a NUL in the name
        raise DataError(f"Cannot read {str(path)!r}: {error}.") from error


def read_json(path: Path, *, once: bool = False) -> Any:
    """Read a JSON file.

    Args:
        path: of the file.
        once: refuse an object that has a key twice, of which the last one would count: for files that people write.

    Raises:
        DataError: the file is missing, unreadable or not JSON; the text says which and where.
    """
    path = Path(path)
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=_with_keys_once if once else None)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON (line {error.lineno}: {error.msg}); mend it or make it anew."
        ) from error
    except (RecursionError, ValueError) as error:  # nested a thousand times, or a number of thousands of digits
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]
        raise DataError(f"{path} cannot be read as JSON: {reason}; mend it or make it anew.") from error


def _with_keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key '{key:.60}' stands twice in one object")
        found[key] = value
    return found
