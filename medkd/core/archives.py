"""Zips from strangers: checked entry by entry before anything is written, and never larger than they say."""

from __future__ import annotations

import errno
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medkd.core.errors import MedkdError

_SMALL = 2**20  # entries that may grow by any ratio
_BLOCK = 2**20
_END = 22 + 0xFFFF  # bytes of a zip's last record, comment included
_WIDE = 20 + 56  # bytes of the records before it, where sizes have 64 bits
_LONGEST_NAME, _LONGEST_PATH = 255, 1000  # bytes
_PER_ENTRY = 4096  # of the directory, far more than a name needs
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError, RuntimeError)


@dataclass(frozen=True, kw_only=True)
class ArchiveRules:
    """What a zip may hold.

    Attributes:
        holds: what is expected in it, with its article: ``a model``.
        remedy: what to do with a damaged one.
        error: of a zip that breaks a rule.
        entries: most entries.
        size: most bytes of all entries together, unpacked.
        ratio: times that an entry of more than a mebibyte may grow.
    """

    holds: str
    remedy: str
    error: type[MedkdError]
    entries: int
    size: int
    ratio: int


def is_damage(error: BaseException) -> bool:
    """Whether an error of :mod:`zipfile` says that the file is damaged, or no zip."""
    return isinstance(error, _DAMAGE) or (isinstance(error, OSError) and error.errno == errno.EINVAL)


def check_directory(archive: Path, called: Path | str, rules: ArchiveRules) -> None:
    """Refuse a directory of millions of entries before :mod:`zipfile` reads it into memory.

    Args:
        archive: the file.
        called: what it is called in the sentence.
        rules: what it may hold.

    Raises:
        MedkdError: of the rules' class.
    """
    with archive.open("rb") as file:
        whole = file.seek(0, 2)
        file.seek(max(0, whole - _END - _WIDE))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 16:
        return  # no zip, which zipfile says
    size = int.from_bytes(tail[at + 12 : at + 16], "little")
    wide = tail[max(0, at - _WIDE) : at]
    if wide.startswith(b"PK\x06\x06"):
        size = max(size if size < 0xFFFFFFFF else 0, int.from_bytes(wide[40:48], "little"))
    if size > rules.entries * _PER_ENTRY:
        raise rules.error(f"{called} has a directory of {size} bytes, which {rules.holds} never needs; is it one?")


def check_entries(archive: Path | str, entries: Sequence[zipfile.ZipInfo], rules: ArchiveRules) -> None:
    """Refuse entries that leave the folder, links, encrypted or twice named entries, and bombs.

    Args:
        archive: what the zip is called in the sentence.
        entries: its directory.
        rules: what it may hold.

    Raises:
        MedkdError: of the rules' class.
    """
    if len(entries) > rules.entries:
        raise rules.error(
            f"{archive} holds {len(entries)} entries, {rules.holds} at most {rules.entries}; is it {rules.holds}?"
        )
    names: set[str] = set()
    for entry in entries:
        _check_name(archive, entry.filename, rules)
        _check_form(archive, entry, rules)
        name = entry.filename.rstrip("/").casefold()
        if name in names:
            raise rules.error(f"{archive} holds '{entry.filename}' twice; {rules.remedy}.")
        names.add(name)
    _check_folders(archive, entries, rules)
    total = sum(entry.file_size for entry in entries)
    if total > rules.size:
        raise rules.error(
            f"{archive} would unpack to {total / 2**30:.3g} GiB, {rules.holds} to {rules.size / 2**30:.3g} at most."
        )


def _check_folders(archive: Path | str, entries: Sequence[zipfile.ZipInfo], rules: ArchiveRules) -> None:
    """Refuse names that no folder can have, and entries below one that is a file."""
    files = {entry.filename.casefold() for entry in entries if not entry.is_dir()}
    for entry in entries:
        path = PurePosixPath(entry.filename.casefold())
        longest = max((len(os.fsencode(part)) for part in PurePosixPath(entry.filename).parts), default=0)
        if longest > _LONGEST_NAME or len(os.fsencode(entry.filename)) > _LONGEST_PATH:
            raise rules.error(
                f"{archive} holds the entry '{entry.filename:.60}…', which is too long for the name of a file; "
                f"{rules.remedy}."
            )
        if any(str(parent) in files for parent in path.parents):
            raise rules.error(
                f"{archive} holds the entry '{entry.filename:.100}' below one that is a file; {rules.remedy}."
            )


def extract(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, called: Path | str, rules: ArchiveRules
) -> None:
    """Write one checked entry to a new file.

    Args:
        archive: the open zip.
        entry: one of its entries, no folder.
        target: file to be made; its folder exists.
        called: what the zip is called in the sentence.
        rules: what it may hold.

    Raises:
        MedkdError: it is larger than the zip's directory says; of the rules' class.
    """
    left = entry.file_size
    with archive.open(entry) as source, target.open("xb") as file:
        while block := source.read(_BLOCK):
            left -= len(block)
            if left < 0:
                raise rules.error(f"{called}: '{entry.filename}' is larger than it says; it is not unpacked.")
            file.write(block)


def _check_name(archive: Path | str, name: str, rules: ArchiveRules) -> None:
    parts = PurePosixPath(name).parts
    leaves = name.startswith("/") or ".." in parts or "\\" in name or ":" in name or "\0" in name
    if leaves or not parts:
        raise rules.error(
            f"{archive} holds the entry '{name}', which may lie outside of the folder; it is not unpacked."
        )


def _check_form(archive: Path | str, entry: zipfile.ZipInfo, rules: ArchiveRules) -> None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise rules.error(f"{archive} holds '{entry.filename}', which is a link or no plain file; it is not unpacked.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise rules.error(
            f"{archive} is damaged or compressed in a way that medkd does not read ('{entry.filename}'); "
            f"{rules.remedy}."
        )
    if entry.flag_bits & 1:
        raise rules.error(f"{archive} is encrypted ('{entry.filename}'); unpack it yourself, or {rules.remedy}.")
    if entry.file_size > max(_SMALL, rules.ratio * entry.compress_size):
        raise rules.error(
            f"{archive}: '{entry.filename}' would grow from {entry.compress_size} to {entry.file_size} bytes, which no "
            f"part of {rules.holds} does; it is not unpacked."
        )
