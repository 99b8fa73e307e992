"""A disk of a chosen size, or one that is read-only, where this machine lets the tests make one (as root on Linux)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PAGE = 4096


@contextmanager
def small_disk(folder: Path, pages: int) -> Iterator[None]:
    """Mount a file system of so many pages of 4096 bytes at a folder; the test is skipped where that is not allowed."""
    folder.mkdir(exist_ok=True)
    if not _mount("-t", "tmpfs", "-o", f"size={pages * _PAGE}", "tmpfs", str(folder)):
        pytest.skip("only root can make a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Mount a folder on itself, read-only; the test is skipped where that is not allowed."""
    if not _mount("--bind", str(folder), str(folder)):
        pytest.skip("only root can mount a folder read-only")
    try:
        assert _mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def enlarge(folder: Path) -> None:
    """Make space on a small disk."""
    assert _mount("-o", "remount,size=256m", str(folder))


def pages_of(folder: Path) -> int:
    """How many pages a folder takes there."""
    return sum(-(-path.lstat().st_size // _PAGE) for path in folder.rglob("*") if not path.is_dir())


def _mount(*options: str) -> bool:
    try:
        return subprocess.run(["mount", *options], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
