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

from medkd.core.errors import DataError
from medkd.core.files import check_file, read_json, write_json

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
