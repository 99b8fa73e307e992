"""JSON as other programs write it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medkd.core import files
from medkd.core.errors import DataError
from medkd.core.files import (
    atomic_path,
    check_file,
    lasting_scratch_folder,
    read_json,
    scratch_folder,
    write_json,
)

NOBODY = 2**22 + 5  # no process has this number

KILLED = """
import os, signal, sys
from pathlib import Path
from medkd.core.files import atomic_path
with atomic_path(Path(sys.argv[1]) / "x.json"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_is_read_with_and_without_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"name": "Küche"}, ensure_ascii=False), encoding=encoding)
    assert read_json(path) == {"name": "Küche"}


@pytest.mark.parametrize(
    ("content", "text"), [(None, "does not exist"), (b"\xff\xfe{", "Cannot read"), (b'{"a":\n1,}', "line 2")]
)
def test_what_is_no_json_is_named_with_its_file(tmp_path: Path, content: bytes | None, text: str) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=text) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert process.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".tmp-*")
    living = tmp_path / left.name.replace(f"-{left.name.split('-')[2]}-", f"-{os.getpid()}-")
    foreign, old = tmp_path / ".tmp-01234567-1-a.json", tmp_path / ".tmp-abcdefgh-b.json"
    for path in (living, foreign, old):
        path.touch()
    os.utime(old, (0, 0))
    write_json(tmp_path / "x.json", {})
    assert sorted(tmp_path.iterdir()) == sorted([living, foreign, tmp_path / "x.json"])


def _deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def _digits(path: Path) -> None:
    path.write_text("1" * 10_000)


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (_deep, "nested too deeply"),
        (_digits, "cannot be read as JSON: Exceeds the limit"),
        (os.mkfifo, "is a named pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (Path.mkdir, "is a folder"),
        (_dangling, "does not exist"),
    ],
)
def test_hostile_files_are_one_sentence(tmp_path: Path, make: Callable[[Path], object], text: str) -> None:
    path = tmp_path / "x.json"
    make(path)
    with pytest.raises(DataError, match=text) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    _dangling(tmp_path / "dangling")
    os.mkfifo(tmp_path / "pipe")
    for name, text in {"dangling": "link to .*nowhere", "pipe": "a named pipe", "none": "No such file"}.items():
        with pytest.raises(DataError, match=text):
            check_file(tmp_path / name)
    with pytest.raises(DataError, match="null"):
        check_file(Path("a\0b"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("ITK ERROR: cannot be written\nReason: No space left on device"), "No space left on device"),
        (ValueError("Error while serializing: I/O error: File too large (os error 27)"), "File too large"),
    ],
)
def test_what_the_system_refuses_is_a_sentence_whatever_a_library_calls_it(
    tmp_path: Path, error: Exception, reason: str
) -> None:
    with (
        pytest.raises(DataError, match=f"a.bin failed: {reason}; nothing was changed"),
        atomic_path(tmp_path / "a.bin"),
    ):
        raise error
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.bin"):
        raise ZeroDivisionError  # a defect stays one


def test_folders_of_killed_processes_are_swept_and_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    with scratch_folder(tmp_path) as own:
        theirs = own.with_name(own.name.replace(str(os.getpid()), str(NOBODY)))
        theirs.mkdir()
        lasting = lasting_scratch_folder()
        left = lasting.with_name(lasting.name.replace(str(os.getpid()), str(NOBODY)))
        (left / "inside").mkdir(parents=True)
        stranger = tmp_path / ".tmp-of somebody"
        stranger.mkdir()
        (tmp_path / ".tmp-notes").touch()
        for old in (stranger, tmp_path / ".tmp-notes"):
            os.utime(old, (0, 0))
        files._swept.clear()
        files.sweep(tmp_path)
        again = lasting_scratch_folder()
        assert own.is_dir() and lasting.is_dir() and stranger.is_dir() and (tmp_path / ".tmp-notes").exists()
        assert not theirs.exists() and not left.exists()
    assert not own.exists()
    for folder in (lasting, again):
        files._clear(folder)
