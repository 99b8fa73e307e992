"""One training at a time on a fold: a lock file that says who works there, and that nobody has to remove by hand."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil

from medkd.core.errors import DataError, MedkdError, RunError

_BEAT_SECONDS = 20.0
_STALE_SECONDS = 300.0  # of another machine, whose processes nobody here can see


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        host: name of the machine.
        process: its number there.
        started: when the process began, in seconds since 1970; numbers are used again.
    """

    host: str
    process: int
    started: float

    @classmethod
    def this_process(cls) -> Holder:
        """The one that runs."""
        return cls(platform.node(), os.getpid(), psutil.Process().create_time())

    def is_alive(self, file: Path) -> bool:
        """Whether it still works: the process is there, or on another machine has touched the lock not long ago."""
        if self.host != platform.node():
            return time.time() - file.stat().st_mtime < _STALE_SECONDS
        try:
            return abs(psutil.Process(self.process).create_time() - self.started) < 1
        except psutil.Error:
            return False


@contextmanager
def fold_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a fold for a block; it lies beside the fold folder, which may be thrown away meanwhile.

    A lock whose process is gone is taken over. Folders that were made for the lock and are empty at the end are
    removed.

    Args:
        folder: fold folder, which need not exist.

    Raises:
        RunError: another process trains this fold.
        DataError: the folder cannot be written to.
    """
    file = folder.parent / f".{folder.name}.lock"
    made = [place for place in file.parents if not place.exists()]
    try:
        _take(file, folder)
    except MedkdError:
        _remove_empty(made)
        raise
    stopped = threading.Event()
    beat = threading.Thread(target=_beat, args=(file, stopped), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stopped.set()
        beat.join()
        file.unlink(missing_ok=True)
        _remove_empty(made)


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()  # does nothing to a folder that holds anything


def _take(file: Path, folder: Path) -> None:
    """Write this process into the lock. Of two that find a stale lock at once the system lets one in first."""
    mine = Holder.this_process()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(file) as opened:
            holder = _parsed(opened.read())
            if holder is not None and holder != mine and holder.is_alive(file):
                _refuse(holder, folder)
            _write_down(mine, file, opened)
    except OSError as error:
        raise DataError(
            f"Cannot write {file}: {error.strerror or error}; choose a folder that can be written to."
        ) from error


def _write_down(holder: Holder, file: Path, opened: TextIO) -> None:
    """Fill the lock; one that cannot be filled, as on a full disk, is removed."""
    try:
        opened.seek(0)
        opened.truncate()
        opened.write(json.dumps(asdict(holder)) + "\n")
        opened.flush()
    except OSError:
        file.unlink(missing_ok=True)
        raise


@contextmanager
def _exclusive(file: Path) -> Iterator[TextIO]:
    """The lock's file, opened or made, that no other process on this machine looks at meanwhile."""
    while True:
        handle = os.open(file, os.O_CREAT | os.O_RDWR, 0o644)
        with os.fdopen(handle, "r+", encoding="utf-8", errors="replace") as opened:
            with suppress(ImportError, OSError):  # systems and file systems that cannot
                import fcntl

                fcntl.flock(opened, fcntl.LOCK_EX)
            if _is_still(file, opened):  # else its holder removed it while this process waited
                yield opened
                return


def _is_still(file: Path, opened: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(opened.fileno()), file.stat())
    except FileNotFoundError:
        return False


def _parsed(text: str) -> Holder | None:
    """Who holds the lock; None where nobody does, or a kill left half of it."""
    try:
        data: Any = json.loads(text)
        return Holder(str(data["host"]), int(data["process"]), float(data["started"]))
    except (ValueError, KeyError, TypeError):
        return None


def _refuse(holder: Holder, folder: Path) -> None:
    where = "" if holder.host == platform.node() else f" on {holder.host}"
    raise RunError(
        f"{folder} is being trained by the process {holder.process}{where}; wait for it or stop it, or give --tag TEXT "
        "to train beside it."
    )


def _beat(file: Path, stopped: threading.Event) -> None:
    """Touch the lock now and then, so that other machines see that its holder lives."""
    while not stopped.wait(_BEAT_SECONDS):
        with suppress(OSError):
            os.utime(file)
