"""Does what is missing of a recipe: begins what may run, waits, tries a second time what failed, and goes on."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medkd.core.dataset import DatasetDescription, labelled_cases
from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.core.moved import note_moved
from medkd.core.paths import Root
from medkd.core.run import DATASET_FILE
from medkd.reproduction.engines import AGAIN, Engine, Handle, Order
from medkd.reproduction.graph import Node
from medkd.reproduction.local import find_here
from medkd.reproduction.recipe import Recipe, RecipeData
from medkd.reproduction.recipe_values import PHANTOM
from medkd.reproduction.state import Record, State, is_refused_as_outdated, moved_words, runs_of, why_due
from medkd.reproduction.words import import_words

_ATTEMPTS = 2
_PAUSE = 0.2  # seconds between two looks at what runs
_PHANTOM_CASES = 20
_HELD = re.compile(r"is being trained by the process \d+ on ")  # a process of another machine, which may be lost
_HELD_SECONDS = 360.0  # after which a lost one does not hold a fold any longer, see medkd.training.lock
_LOOK_SECONDS = 30.0
_PARTS_OF_LOCAL = 3  # words of a local engine's ticket
STOPPED = "it was stopped; the same command goes on with it"
LOST = "no process of this machine any more; the same command goes on with it"
Say = Callable[[str], None]


@dataclass
class Outcome:
    """What became of the nodes.

    Attributes:
        done: names of those that are done.
        failed: name → why, of those that failed twice.
        blocked: name → the failed node that it needs.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)


def ensure_data(recipe: Recipe, root: Root, source: Path | None, say: Say) -> list[str] | None:
    """The words of ``medkd_convert`` that make the data set, None where it is there; a phantom is made at once.

    Raises:
        DataError: the data set is not there and nobody says where its download lies, or it is there with other labels
            than the recipe's.
    """
    data = recipe.dataset
    name = f"Dataset{data.number:03d}_{data.name}"
    described = root.raw_dataset(name) / DATASET_FILE
    if described.exists():
        _check_labels(data, described)
        return None
    if data.format == PHANTOM:
        from dataset_conversion.phantom import make_phantom

        say(f"{name}: a phantom of {data.cases or _PHANTOM_CASES} cases is made")
        make_phantom(root.raw / name, data.cases or _PHANTOM_CASES)
        return None
    if source is None:
        raise DataError(
            f"{name} is not in {root.raw}; give the download with --data (medkd_convert {data.format} --help says what "
            "to download)."
        )
    labels = ["--labels", ",".join(data.labels)] if data.labels else []
    return ["convert", data.format, str(source), "-d", str(data.number), "--name", data.name, *labels]


def other_cases(data: RecipeData, root: Root) -> str:
    """A sentence where a data set has another number of labelled cases than its recipe states; empty where both are
    equal, the recipe leaves it open, or the data are not there.
    """
    name = f"Dataset{data.number:03d}_{data.name}"
    raw = root.raw_dataset(name)
    if data.cases is None or not (raw / DATASET_FILE).exists():
        return ""
    try:
        found = len(labelled_cases(raw, DatasetDescription.load(raw / DATASET_FILE)))
    except DataError:  # whoever prepares them says what is wrong
        return ""
    if found == data.cases:
        return ""
    return (
        f"the recipe is of {data.cases} cases (dataset.cases), but {name} has {found} with labels; see which ones "
        "before scores are compared with the published ones"
    )


def _check_labels(data: RecipeData, described: Path) -> None:
    """What was converted before, or by hand, must be named as the recipe names it."""
    if not data.labels:
        return
    found, expected = DatasetDescription.load(described).labels, LabelSpec.from_names(data.labels)
    if _named(found) != _named(expected):
        raise DataError(
            f"{described} has the labels {_shown(found)}, but the recipe's dataset.labels are {_shown(expected)}; "
            f"convert it anew, with medkd_convert --labels {','.join(data.labels)!r}, or change the recipe."
        )


def _named(labels: LabelSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Structures whatever the case of their letters."""
    return [(name.casefold(), values) for name, values in labels.foreground]


def _shown(labels: LabelSpec) -> str:
    return ", ".join(f"{name} {'+'.join(map(str, values))}" for name, values in labels.foreground)


class Runner:
    """One go at a recipe.

    Args:
        nodes: what to do, in an order in which it may be done.
        state: of the recipe.
        engine: that runs the commands.
        say: takes a line about the progress.
        modules: of the user's, which every command imports; they are no part of what a record compares.
    """

    def __init__(
        self, nodes: Mapping[str, Node], state: State, engine: Engine, say: Say, modules: Sequence[str] = ()
    ) -> None:
        self.nodes, self.state, self.engine, self.say, self.modules = nodes, state, engine, say, modules
        self.records = state.read()
        self._runs = runs_of(self.records)
        self.outcome = Outcome()
        self.waiting = list(nodes.values())
        self.running: dict[str, Handle] = {}
        self._attempts: dict[str, int] = {}
        self._spent: list[float] = []
        self._anew: set[str] = set()
        self._due: set[str] = set()
        self._held: dict[str, float] = {}
        self._not_before: dict[str, float] = {}

    def run(self) -> Outcome:
        """Until nothing is left that can be done."""
        try:
            while self.waiting or self.running:
                self._look()
                self._begin_what_may()
                if self.waiting or self.running:
                    time.sleep(_PAUSE)
        except BaseException:
            self.say("stopping; what was computed is kept, the same command goes on from there")
            self.engine.stop()
            self._note_stopped()
            raise
        return self.outcome

    def _note_stopped(self) -> None:
        """Of the commands that ended with this one nobody says any longer that they run."""
        for name in self.running:
            record = self.records[name]
            if self.engine.find(record.ticket) is None:
                self.records[name] = replace(record, status="failed", ticket="", error=STOPPED)
                self.state.write(name, self.records[name])

    def _begin_what_may(self) -> None:
        ready: list[Node] = []
        for node in list(self.waiting):
            lost = {*self.outcome.failed, *self.outcome.blocked}
            obstacle = next((need for need in node.needs if need in lost), None)
            if obstacle is not None:
                self.waiting.remove(node)
                self.outcome.blocked[node.name] = obstacle
            elif all(need in self.outcome.done for need in node.needs) and not self._is_early(node.name):
                self._consider(node, ready)
        room = self.engine.free()
        self._begin(ready[: max(room, 0)])

    def _consider(self, node: Node, ready: list[Node]) -> None:
        """A node whose needs are there: done before, still running, or ready to be begun."""
        record = self._followed(node)
        if node.name in self._due:
            ready.append(node)
            return
        if why_due(node, record, self._command(node)) is None:
            self.waiting.remove(node)
            self.outcome.done.append(node.name)
            return
        if record is not None and record.status == "running" and node.name not in self._attempts:
            handle = self.engine.find(record.ticket) or find_here(record.ticket)
            if handle is not None:
                self.waiting.remove(node)
                self.running[node.name] = handle
                self._attempts[node.name] = record.attempts
                self.say(f"{node.name} still runs")
                return
        self._due.add(node.name)
        ready.append(node)

    def _followed(self, node: Node) -> Record | None:
        """A node's record, which is told where the models of its command lie, if they were moved since it was done."""
        record = self.records.get(node.name)
        command = self._command(node)
        moved = {} if record is None or record.status != "done" else moved_words(record, command)
        if record is None or not moved:
            return record
        for old, new in moved.items():
            note_moved(Path(record.folder).parent, old, new)
            self.say(f"{node.name} is done: {old} lies at {new} by now")
        self.records[node.name] = replace(record, command=tuple(command))
        self.state.write(node.name, self.records[node.name])
        return self.records[node.name]

    def _begin(self, ready: list[Node]) -> None:
        if not ready:
            return
        orders = [self._order(node) for node in ready]
        for node, order, handle in zip(ready, orders, self.engine.begin(orders), strict=True):
            self._attempts[node.name] = self._attempts.get(node.name, 0) + 1
            command = self._command(node)
            known = self.records.get(node.name)
            self.records[node.name] = self.state.begin(
                node.name, command, self._attempts[node.name], handle.ticket, known.folder if known else ""
            )
            self.waiting.remove(node)
            self.running[node.name] = handle
            self.say(f"{node.name} begins; its log: {order.log}")

    def _order(self, node: Node) -> Order:
        command = self._command(node)
        if node.name in self._anew:
            command = ["--overwrite" if word == "--continue" else word for word in command]
        self.state.mark(node.name, command)
        words = (sys.executable, "-m", "medkd", command[0], *import_words(self.modules), *command[1:])
        return Order(name=node.name, command=words, output=self.state.output(node.name), log=self.state.log(node.name))

    def _command(self, node: Node) -> list[str]:
        return node.command(self._runs)

    def _look(self) -> None:
        """At everything that runs."""
        for name, handle in list(self.running.items()):
            code = handle.poll()
            if code is None:
                continue
            del self.running[name]
            node = self.nodes[name]
            if code == AGAIN:
                self.waiting.insert(0, node)
                self._attempts[name] -= 1
                continue
            record = self.state.end(node, self.records[name], code)
            self.records[name] = record
            for warning in record.warnings:
                self.say(f"{name} warns: {warning}")
            if record.status == "done":
                self._done(name, record)
            else:
                self._failed(node, record)

    def _done(self, name: str, record: Record) -> None:
        self._runs |= runs_of({name: record})
        self.outcome.done.append(name)
        self._spent.append(record.seconds)
        left = len(self.waiting) + len(self.running)
        mean = sum(self._spent) / len(self._spent)
        at_a_time = max(len(self.running), 1)
        ahead = f", {left} to go, about {_duration(mean * left / at_a_time)}" if left else ""
        self.say(f"{name} is done after {_duration(record.seconds)}{ahead}")

    def _failed(self, node: Node, record: Record) -> None:
        if node.name not in self._anew and is_refused_as_outdated(record):
            self._anew.add(node.name)
            self._attempts[node.name] -= 1
            self.say(f"{node.name} is made anew: {record.error}")
            self.waiting.insert(0, node)
            return
        if self._waits_for_another(node.name, record):
            self._attempts[node.name] -= 1
            self.say(f"{node.name} waits: {record.error}")
            self.waiting.insert(0, node)
            return
        if self._attempts[node.name] < _ATTEMPTS:
            self.say(f"{node.name} failed ({record.error}); it is tried once more")
            self.waiting.insert(0, node)
            return
        self.outcome.failed[node.name] = record.error
        self.say(f"{node.name} failed again: {record.error}")

    def _is_early(self, name: str) -> bool:
        return time.monotonic() < self._not_before.get(name, 0.0)

    def _waits_for_another(self, name: str, record: Record) -> bool:
        """Whether a process of another machine holds the fold, which may be that of a lost job, until nobody believes
        in it any longer.
        """
        if _HELD.search(record.error) is None:
            return False
        now = time.monotonic()
        self._not_before[name] = now + _LOOK_SECONDS
        return now - self._held.setdefault(name, now) < _HELD_SECONDS


def is_lost(record: Record) -> bool:
    """Whether the local engine began a command that is said to run and of which this machine has no process."""
    of_local = len(record.ticket.split()) == _PARTS_OF_LOCAL
    return record.status == "running" and of_local and find_here(record.ticket) is None


def _duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> _duration(75), _duration(7260), _duration(3)
    ('1 min 15 s', '2 h 1 min', '3 s')
    """
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
