"""What earlier runs of a conversion have finished, so that running it again continues."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medkd.core.errors import DataError
from medkd.core.serial import from_data, to_data
from medkd.io.checks import Finding

STATE_FILE = ".conversion.jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One finished case.

    Attributes:
        case: case id, with its split (``Tr/case``).
        signature: of its sources and of what was done to them.
        files: written file, relative to the data set → size in bytes.
        values: label values present.
        warnings: findings of the time when it was converted.
        removed: whether the case was taken out again.
        marks: what is remarkable about it.
        digest: fingerprint of its contents, where duplicates are looked for.
    """

    case: str
    signature: str
    files: Mapping[str, int]
    values: tuple[int, ...] = ()
    warnings: tuple[Finding, ...] = ()
    removed: bool = False
    marks: tuple[str, ...] = ()
    digest: str = ""


@dataclass
class State:
    """The log of finished cases: one JSON object per line, appended as cases finish; a torn last line is ignored."""

    folder: Path
    format: str
    source: str
    entries: dict[str, Entry] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, folder: Path, format: str, source: str) -> State:
        """Read the log of ``folder`` or begin one.

        Raises:
            DataError: the folder was converted from another source, or cannot be written to.
        """
        state = cls(folder, format, source)
        lines = _lines(folder / STATE_FILE)
        if not lines:
            state._append({"format": format, "source": source})
            return state
        head = lines[0]
        if (head.get("format"), head.get("source")) != (format, source):
            raise DataError(
                f"{folder} was converted from {head.get('source')} ({head.get('format')}), not from {source} "
                f"({format}); "
                "choose another number or remove that folder first."
            )
        for line in lines[1:]:
            entry = from_data(Entry, line, str(folder / STATE_FILE))
            state.entries[entry.case] = entry
        return state

    def finished(self, case: str, signature: str) -> Entry | None:
        """The entry of ``case`` if its sources are the same and its files are still there in full."""
        entry = self.entries.get(case)
        if entry is None or entry.removed or entry.signature != signature:
            return None
        return entry if all(_size(self.folder / name) == size for name, size in entry.files.items()) else None

    def add(self, entry: Entry) -> None:
        """Remember a finished case."""
        with self._lock:
            self.entries[entry.case] = entry
            self._append(to_data(entry))

    def discard(self, case: str) -> None:
        """Delete what an earlier run wrote for ``case``, which can no longer be converted."""
        entry = self.entries.get(case)
        if entry is None or entry.removed:
            return
        for name in entry.files:
            (self.folder / name).unlink(missing_ok=True)
        self.add(Entry(case=case, signature="", files={}, removed=True))

    def _append(self, line: object) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / STATE_FILE).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as error:
            raise DataError(
                f"Cannot write to {self.folder}: {error.strerror or error}; choose a root that can be written to."
            ) from error


def _lines(path: Path) -> list[dict]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # the run was killed while it wrote this line
            continue
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
