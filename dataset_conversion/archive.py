"""Unpacking a downloaded archive without trusting it."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from medkd.core.errors import DataError
from medkd.core.files import atomic_path


def is_tar(path: Path) -> bool:
    """Whether the file is a tar archive, compressed or not."""
    return path.is_file() and tarfile.is_tarfile(path)


def unpack_tar(path: Path, folder: Path, wanted: Callable[[PurePosixPath], bool]) -> None:
    """Unpack the regular files that are ``wanted`` below ``folder``; files that are there in full are kept.

    Links and devices are skipped, so that nothing can point outside.

    Raises:
        DataError: the archive is damaged, or a member's path leads outside of the folder.
    """
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or "\\" in member.name:
                    raise DataError(
                        f"{path} holds the path '{member.name}', which leads outside of the folder; do not trust this "
                        "archive."
                    )
                if member.isreg() and wanted(name):
                    _unpack(archive, member, folder / name)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} is damaged or cannot be unpacked ({error}); download it again.") from error


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    if target.exists() and target.stat().st_size == member.size:
        return
    stream = archive.extractfile(member)
    if stream is None:
        return
    with atomic_path(target) as temporary, stream:
        with temporary.open("wb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)
        os.utime(temporary, (member.mtime, member.mtime))
