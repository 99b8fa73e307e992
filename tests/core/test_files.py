"""JSON as other programs write it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medkd.core.errors import DataError
from medkd.core.files import read_json


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
