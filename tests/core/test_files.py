"""JSON as other programs write it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medkd.core.errors import DataError
from medkd.core.files import read_json, write_json

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
