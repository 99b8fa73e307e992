"""What became of a recipe's runs so far: a record and a log per run, from which a killed reproduction goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from medkd.core.errors import WARNING
from medkd.core.made_from import changed_inputs
from medkd.core.moved import lies_at
from medkd.core.run import RUN_FILE, RunDescription
from medkd.core.serial import load, save
from medkd.evaluation.done import why_not_done
from medkd.reproduction.graph import SEARCHES, Node
from medkd.reproduction.search import BEST_FILE, changed_search

Status = Literal["running", "done", "failed"]
_FOLDER = "reproductions"
_SHOWN = 10  # warnings of a run


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
        folder: the fold folder that it trained, now or before; empty where there is none.
        error: the last line that it said when it failed.
        warnings: what it warned of.
        run_from: byte of its log at which the words of this run begin, those of goes that it goes on from included.
        go_from: byte of its log at which the words of the last go begin.
    """

    command: tuple[str, ...]
    status: Status
    attempts: int = 1
    ticket: str = ""
    started: float = 0.0
    seconds: float = 0.0
    folder: str = ""
    error: str = ""
    warnings: tuple[str, ...] = ()
    run_from: int = 0
    go_from: int = 0
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
        self._marks: dict[str, tuple[int, int]] = {}

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

    def mark(self, node: str, command: Sequence[str]) -> None:
        """Note where in its log the words of a command that an engine is about to begin will start, and those of its
        run: where the command goes on with what it did not end, at the first of them.

        Args:
            node: whose command it is.
            command: its words, as they are given to the engine; with others than before a run begins anew.
        """
        log, path = self.log(node), self._records / f"{node}.json"
        there = log.stat().st_size if log.exists() else 0
        known = load(Record, path) if path.exists() else None
        goes_on = known is not None and known.status != "done" and list(known.command) == list(command)
        self._marks[node] = (min(known.run_from, there) if known is not None and goes_on else there), there

    def begin(self, node: str, command: list[str], attempts: int, ticket: str, folder: str = "") -> Record:
        """Record that a command runs; a folder that it made before is remembered."""
        if node not in self._marks:
            self.mark(node, command)
        run_from, go_from = self._marks.pop(node)
        record = Record(
            command=tuple(command),
            status="running",
            run_from=run_from,
            go_from=go_from,
            attempts=attempts,
            ticket=ticket,
            started=time.time(),
            folder=folder,
        )
        self.write(node, record)
        return record

    def end(self, node: Node, record: Record, code: int) -> Record:
        """Record how a command ended."""
        ended = replace(record, ticket="", seconds=time.time() - record.started, warnings=self._warnings(node, record))
        if code == 0:
            folder = self._last_line(self.output(node.name)) if node.kind != "prepare" else ""
            ended = replace(ended, status="done", folder=folder, error="")
        else:
            ended = replace(ended, status="failed", error=self._why(node, record, code))
        self.write(node.name, ended)
        return ended

    def _why(self, node: Node, record: Record, code: int) -> str:
        """Its last words, where it had time for some."""
        if code < 0:
            return f"it was killed: {signal.strsignal(-code) or f'signal {-code}'}"
        said = self._last_line(self.log(node.name), record.go_from).removeprefix("error: ")
        if said and not said.startswith(WARNING):
            return said
        if node.words[0] == "convert":
            return (
                f"cases were left out or have problems, see {self.output(node.name)}; download them and remove the "
                "data set, or give the same command again to go on with those that are there"
            )
        return f"it ended with status {code}, see {self.output(node.name)}"

    def _warnings(self, node: Node, record: Record) -> tuple[str, ...]:
        """Each of its warnings once."""
        log = self.log(node.name)
        lines = _said(log, record.run_from).splitlines()
        found = dict.fromkeys(line.removeprefix(WARNING) for line in lines if line.startswith(WARNING))
        more = len(found) - _SHOWN
        return (*list(found)[:_SHOWN], *([f"and {more} more times, see {log}"] if more > 0 else []))

    @staticmethod
    def _last_line(path: Path, start: int = 0) -> str:
        lines = [line for line in _said(path, start).splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


def _said(path: Path, start: int) -> str:
    """A file from a byte on; all of it where it was begun anew since; nothing where it is not there."""
    content = path.read_bytes() if path.exists() else b""
    return content[start if start <= len(content) else 0 :].decode("utf-8", errors="replace")


def why_due(node: Node, record: Record | None, command: Sequence[str]) -> str | None:
    """Why a node has to be done; None where this very command has done it and what it made is still there.

    Args:
        node: to look at; preparing is always due, since it is cheap and sees itself what has changed.
        record: what became of it.
        command: its words now.
    """
    if record is None or record.status != "done":
        return "it is not done"
    if list(record.command) != list(command) and not moved_words(record, command):
        return "it was done by another command"
    if node.kind == "prepare":
        return "what has changed is looked for again"
    made = Path(record.folder) / BEST_FILE if node.kind == "search" else Path(record.folder)
    if not record.folder:
        return None
    if not made.exists():
        return f"{made} is gone"
    return changed_search(made.parent) if node.kind == "search" else why_not_done(made, plan=True)


def moved_words(record: Record, command: Sequence[str]) -> dict[str, str]:
    """Where the models that a command names lay when it was done → where they lie now, if that is all in which the
    command differs, and they are the same by their weights; else empty.

    Raises:
        DataError: a record of the run is damaged.
    """
    if not record.folder or len(record.command) != len(command):
        return {}
    pairs = {old: new for old, new in zip(record.command, command, strict=True) if old != new}
    return pairs if all(lies_at(Path(record.folder), old, new) for old, new in pairs.items()) else {}


def is_refused_as_outdated(record: Record) -> bool:
    """Whether a training that failed would not go on with a fold that was made from other weights or data than those
    that are there now, so that it has to begin anew.
    """
    run = Path(record.folder).parent / RUN_FILE
    if not record.folder or not run.exists():
        return False
    why = changed_inputs(Path(record.folder), load(RunDescription, run).configuration)
    return why is not None and why in record.error


@dataclass(frozen=True)
class Standing:
    """What a recipe's records are worth now.

    Attributes:
        records: of the nodes that are done, and of those that run or failed.
        outdated: node → why it is due again, of those that were done before.
    """

    records: Mapping[str, Record]
    outdated: Mapping[str, str]


def standing(nodes: Mapping[str, Node], records: Mapping[str, Record]) -> Standing:
    """See which records still count, by what :func:`why_due` says of each node and of all that it needs.

    Args:
        nodes: all of a recipe's, in an order in which they may be done.
        records: node → its record, see :meth:`State.read`.
    """
    found, outdated, runs = dict[str, Record](), dict[str, str](), dict[str, str]()
    for name, node in nodes.items():
        record = records.get(name)
        if record is None:
            continue
        if record.status == "done" and node.kind != "prepare":
            lost = [need for need in node.needs if nodes[need].kind != "prepare" and need not in runs]
            why = f"{lost[0]} is not done" if lost else why_due(node, record, node.command(runs))
            if why is not None:
                outdated[name] = why
                continue
            runs |= runs_of({name: record})
        found[name] = record
    return Standing(found, outdated)


def runs_of(records: Mapping[str, Record]) -> dict[str, str]:
    """Node → name of the run that it trained, or folder of what it searched, of those that are done."""
    found = {}
    for name, record in records.items():
        if record.status == "done" and record.folder:
            folder = Path(record.folder)
            found[name] = str(folder) if folder.parent.name == SEARCHES else folder.parent.name
    return found
