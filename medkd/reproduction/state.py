"""What became of a recipe's runs so far: a record and a log per run, from which a killed reproduction goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from medkd.core.serial import load, save
from medkd.reproduction.graph import Node
from medkd.reproduction.search import BEST_FILE

Status = Literal["running", "done", "failed"]
_FOLDER = "reproductions"


@dataclass(frozen=True, kw_only=True)
class Record:
    """``<node>.json``.

    Attributes:
        command: the words of the command; a recipe that changed since makes the run due again.
        status: ``running``, ``done`` or ``failed``.
        attempts: how often it was begun since it last failed for good.
        ticket: by which the engine finds the running command again; empty where it cannot.
        started: when the command began, in seconds since 1970.
        seconds: that it took.
        folder: the fold folder that it trained; empty where there is none.
        error: the last line that it said when it failed.
    """

    command: tuple[str, ...]
    status: Status
    attempts: int = 1
    ticket: str = ""
    started: float = 0.0
    seconds: float = 0.0
    folder: str = ""
    error: str = ""
    schema: int = 1


class State:
    """The records of a recipe below ``<root>/reproductions/<recipe>``.

    Args:
        root: medkd's folder.
        name: of the recipe.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.folder = root / _FOLDER / name
        self._records = self.folder / "runs"

    def read(self) -> dict[str, Record]:
        """Node → its record.

        Raises:
            DataError: a record is damaged.
        """
        found = {}
        for path in sorted(self._records.glob("[!.]*.json")):
            found[path.stem] = load(Record, path)
        return found

    def write(self, node: str, record: Record) -> None:
        """Keep a record."""
        save(self._records / f"{node}.json", record)

    def output(self, node: str) -> Path:
        """Where what a command prints goes."""
        return self._records / f"{node}.out"

    def log(self, node: str) -> Path:
        """Where what a command says of its progress goes."""
        return self._records / f"{node}.log"

    def begin(self, node: str, command: list[str], attempts: int, ticket: str) -> Record:
        """Record that a command runs."""
        record = Record(command=tuple(command), status="running", attempts=attempts, ticket=ticket, started=time.time())
        self.write(node, record)
        return record

    def end(self, node: Node, record: Record, code: int) -> Record:
        """Record how a command ended."""
        ended = replace(record, ticket="", seconds=time.time() - record.started)
        if code == 0:
            folder = self._last_line(self.output(node.name)) if node.kind != "prepare" else ""
            ended = replace(ended, status="done", folder=folder, error="")
        else:
            ended = replace(ended, status="failed", error=self._why(node, code))
        self.write(node.name, ended)
        return ended

    def _why(self, node: Node, code: int) -> str:
        """Its last words, where it had time for some."""
        if code < 0:
            return f"it was killed: {signal.strsignal(-code) or f'signal {-code}'}"
        said = self._last_line(self.log(node.name)).removeprefix("error: ")
        if said and not said.startswith("warning: "):
            return said
        if node.words[0] == "convert":
            return (
                f"cases were left out or have problems, see {self.output(node.name)}; download them and remove the "
                "data set, or give the same command again to go on with those that are there"
            )
        return f"it ended with status {code}, see {self.output(node.name)}"

    @staticmethod
    def _last_line(path: Path) -> str:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


def is_done(record: Record | None, command: list[str]) -> bool:
    """Whether a run was made by this command and is still there."""
    if record is None or record.status != "done" or list(record.command) != command:
        return False
    return not record.folder or Path(record.folder).is_dir()


def runs_of(records: Mapping[str, Record]) -> dict[str, str]:
    """Node → name of the run that it trained, or folder of what it searched, of those that are done."""
    found = {}
    for name, record in records.items():
        if record.status == "done" and record.folder:
            folder = Path(record.folder)
            found[name] = str(folder) if (folder / BEST_FILE).exists() else folder.parent.name
    return found
