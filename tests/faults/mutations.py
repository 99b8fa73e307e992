"""What can happen to one file of a downloaded data set: each mutation changes one file and says what it did."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Random = np.random.Generator
Mutation = Callable[[Path, Random], str | None]
"""Changes a file and returns what it did; None where there is nothing to change in such a file."""

TEXTS = (".json", ".csv", ".xml", ".txt", ".yaml", ".list")
_NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:\.\d+)?(?![\w.])")
_ODD_NUMBERS = ("1e30", "-7", "nan", "inf", "-1e9", "99999999999999999999", "1e-300", "two")
_SEPARATORS = (("/", "\\"), (",", ";"), (" ", "\t"), ("\n", "\r"), ("\n", " "), (".", ","), (":", " "), ("_", "-"))


def pick(values: Any, rng: Random) -> Any:
    """One of them."""
    return values[int(rng.integers(len(values)))]


def truncated(path: Path, rng: Random) -> str:
    content = path.read_bytes()
    length = int(len(content) * rng.uniform(0.02, 0.98))
    path.write_bytes(content[:length])
    return f"cut after {length} of {len(content)} bytes"


def emptied(path: Path, rng: Random) -> str:
    path.write_bytes(b"")
    return "emptied"


def garbage(path: Path, rng: Random) -> str:
    path.write_bytes(rng.bytes(int(rng.integers(1, 3000))))
    return "replaced by garbage"


def scratched(path: Path, rng: Random) -> str:
    """Some bytes in the first part are others."""
    content = bytearray(path.read_bytes())
    if not content:
        return "nothing to scratch"
    for place in rng.integers(0, min(len(content), 400), 3):
        content[int(place)] = int(rng.integers(256))
    path.write_bytes(bytes(content))
    return "three bytes changed"


def folder_instead(path: Path, rng: Random) -> str:
    path.unlink()
    path.mkdir()
    return "a folder in its place"


def dangling(path: Path, rng: Random) -> str:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")
    return "a link to nothing in its place"


def renamed(path: Path, rng: Random) -> str:
    name, dot, ending = path.name.partition(".")
    new = pick(
        (f"{name}x{dot}{ending}", f"x{name}{dot}{ending}", f"{name} (1){dot}{ending}", f"{name}é{dot}{ending}"), rng
    )
    path.rename(path.with_name(new))
    return f"renamed to {new}"


def in_capitals(path: Path, rng: Random) -> str:
    name, dot, ending = path.name.partition(".")
    new = pick((f"{name}{dot}{ending.upper()}", path.name.upper(), path.name.lower()), rng)
    path.rename(path.with_name(new))
    return f"renamed to {new}"


def doubled_file(path: Path, rng: Random) -> str:
    name, dot, ending = path.name.partition(".")
    folder = pick((path.parent, path.parent / "copy"), rng)
    folder.mkdir(exist_ok=True)
    target = folder / (path.name if folder != path.parent else f"{name}_copy{dot}{ending}")
    shutil.copyfile(path, target)
    return f"copied to {target.name} in {folder.name}"


def encoded(path: Path, rng: Random) -> str | None:
    text = _text(path)
    if not text:
        return None
    encoding = pick(("utf-16", "utf-8-sig", "utf-16-le", "utf-32", "cp037"), rng)
    path.write_bytes(text.encode(encoding, "replace"))
    return f"encoded as {encoding}"


def separated(path: Path, rng: Random) -> str | None:
    text = _text(path)
    old, new = pick(_SEPARATORS, rng)
    if not text or old not in text:
        return None
    count = pick((1, -1), rng)
    path.write_text(text.replace(old, new, count), encoding="utf-8", newline="")
    return f"{old!r} replaced by {new!r}" + (" once" if count == 1 else "")


def odd_number(path: Path, rng: Random) -> str | None:
    text = _text(path)
    found = list(_NUMBER.finditer(text or ""))
    if not text or not found:
        return None
    place, number = pick(found, rng), pick(_ODD_NUMBERS, rng)
    path.write_text(text[: place.start()] + number + text[place.end() :], encoding="utf-8")
    return f"{place[0]} at {place.start()} replaced by {number}"


def key_dropped(path: Path, rng: Random) -> str | None:
    return _with_keys(path, rng, double=False)


def key_doubled(path: Path, rng: Random) -> str | None:
    return _with_keys(path, rng, double=True)


ANY_FILE: tuple[Mutation, ...] = (
    truncated, emptied, garbage, scratched, folder_instead, dangling, renamed, in_capitals, doubled_file,
)  # fmt: skip
TEXT_FILE: tuple[Mutation, ...] = (encoded, separated, odd_number, odd_number, key_dropped, key_dropped, key_doubled)


def mutate(path: Path, rng: Random) -> str:
    """Change a file in some way that suits it."""
    kinds = ANY_FILE + TEXT_FILE if path.suffix in TEXTS else ANY_FILE
    while True:
        done = pick(kinds, rng)(path, rng)
        if done is not None:
            return str(done)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def _with_keys(path: Path, rng: Random, *, double: bool) -> str | None:
    """A key (or the second copy of an entry) more or less; what a format cannot notice, a whole annotation less, is no
    mutation of it.
    """
    text = _text(path)
    if not text:
        return None
    if path.suffix == ".json":
        return _json_key(path, json.loads(text), rng, double)
    if path.suffix == ".xml":
        return _xml_key(path, ET.fromstring(text), rng, double)
    if path.suffix == ".csv":
        return _column(path, text, rng, double)
    lines = text.splitlines()
    row = int(rng.integers(len(lines)))
    if double:
        lines.insert(row, lines[row])
    elif path.suffix == ".txt" and " " in lines[row]:
        words = lines[row].split(" ")
        del words[int(rng.integers(len(words)))]
        lines[row] = " ".join(words)
    elif path.suffix == ".yaml":
        del lines[row]
    else:
        return None
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"line {row + 1} {'doubled' if double else 'without a part'}"


def _json_key(path: Path, data: Any, rng: Random, double: bool) -> str | None:
    holders = [holder for holder in _holders(data) if isinstance(holder, list if double else dict) and holder]
    if not holders:
        return None
    holder = pick(holders, rng)
    if double:
        place = int(rng.integers(len(holder)))
        holder.append(holder[place])
        done = f"entry {place} doubled"
    else:
        key = pick(sorted(holder), rng)
        del holder[key]
        done = f"'{key}' dropped"
    path.write_text(json.dumps(data), encoding="utf-8")
    return done


def _holders(data: Any) -> list[Any]:
    found: list[Any] = []
    if isinstance(data, (dict, list)):
        found.append(data)
        for value in data.values() if isinstance(data, dict) else data:
            found += _holders(value)
    return found


def _xml_key(path: Path, root: ET.Element, rng: Random, double: bool) -> str | None:
    inner: list[tuple[ET.Element, ET.Element]] = []
    for parent in root.iter():
        inner += [(parent, child) for child in parent if double or child.tag != "object"]
    if not inner:
        return None
    parent, child = pick(inner, rng)
    if double:
        parent.append(child)
    else:
        parent.remove(child)
    path.write_bytes(ET.tostring(root))
    return f"<{child.tag}> {'doubled' if double else 'dropped'}"


def _column(path: Path, text: str, rng: Random, double: bool) -> str:
    rows = list(csv.reader(io.StringIO(text)))
    if double:
        rows.append(rows[int(rng.integers(1, len(rows)))])
        done = "a row doubled"
    else:
        column = int(rng.integers(len(rows[0])))
        for row in rows:
            del row[column : column + 1]
        done = f"column {column} dropped"
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    path.write_text(stream.getvalue(), encoding="utf-8")
    return done
