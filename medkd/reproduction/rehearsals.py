"""What the trainings of a recipe would refuse, asked of them before one begins: as ``--dry-run`` does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medkd.core.errors import DataError, MedkdError, PlanError
from medkd.core.paths import Root
from medkd.core.run import DATASET_FILE, PLANS_FILE
from medkd.core.serial import from_data
from medkd.core.teachers import Untrained
from medkd.reproduction.graph import PREPARE, LessonPlan, Node, Trained
from medkd.reproduction.state import Record, runs_of
from medkd.tasks import Task, task_of_dataset


def refused_runs(
    nodes: Mapping[str, Node], records: Mapping[str, Record], dataset: str, root: Root
) -> Iterator[tuple[str, str]]:
    """Name and reason of every training that is to be done and would not begin, where that can be known: the data set
    is prepared, and the teacher is there or is going to be trained. Nothing is written or started. Of several seeds the
    first is asked.

    Args:
        nodes: that are asked for.
        records: those that count, see :func:`medkd.reproduction.state.standing`.
        dataset: full name.
        root: medkd's folders.
    """
    ready = _was_prepared(nodes, records)
    remade = PREPARE in nodes and "--overwrite-plan" in nodes[PREPARE].words
    there = (root.raw_dataset(dataset) / DATASET_FILE, root.preprocessed / dataset / PLANS_FILE)
    if not all(file.exists() for file in there) or (remade and not ready):
        return
    task, runs = task_of_dataset(dataset, root.raw.parent), runs_of(records)
    for name, lesson in _first_of_each_row(nodes, runs).items():
        reason = _Rehearsal(task, nodes, runs, root, ready).reason(lesson, nodes[name].fold, dataset)
        if reason is not None:
            yield name, reason


def _first_of_each_row(nodes: Mapping[str, Node], runs: Mapping[str, str]) -> dict[str, LessonPlan]:
    """The trainings that are to be done, by name; seeds differ in nothing that could be refused."""
    found: dict[tuple[Any, ...], tuple[str, LessonPlan]] = {}
    for name, node in nodes.items():
        if node.lesson is not None and name not in runs:
            found.setdefault((node.teacher, node.student, node.method, node.fold), (name, node.lesson))
    return dict(found.values())


def _was_prepared(nodes: Mapping[str, Node], records: Mapping[str, Record]) -> bool:
    """Whether the recipe has prepared the data set, as it asks for now."""
    prepare, record = nodes.get(PREPARE), records.get(PREPARE)
    if prepare is None or record is None or record.status != "done":
        return False
    return list(record.command) == prepare.command({})


@contextmanager
def _silence() -> Iterator[None]:
    """What a training warns of, it says itself when it begins."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@dataclass(frozen=True)
class _Rehearsal:
    """Asks a task what it would do; what is wrong with data that are going to be prepared first is left to that."""

    task: Task
    nodes: Mapping[str, Node]
    runs: Mapping[str, str]
    root: Root
    ready: bool

    def reason(self, lesson: LessonPlan, fold: str, dataset: str) -> str | None:
        """Why a training would not begin; None where it would, or nobody can say yet."""
        try:
            teaching = {} if lesson.teacher is None else {"teacher": self._teacher(lesson), "method": lesson.method}
            with _silence():
                self.task.dry_run(dataset, lesson.network, fold, self._options(lesson), **teaching)
        except (DataError, PlanError) as error:
            return str(error) if self.ready else None
        except MedkdError as error:
            return str(error)
        except (NotImplementedError, RuntimeError):  # the task, or a method, needs a teacher's weights to tell
            return None
        return None

    def _options(self, lesson: LessonPlan) -> Any:
        values = {name: value for name, value in lesson.settings.items() if value is not None and name != "track"}
        options = from_data(self.task.column("training_options"), values, "")
        parameters = dict(lesson.parameters)
        return replace(options, root=Path(self.root.raw.parent), resume=True, method_parameters=parameters)

    def _teacher(self, lesson: LessonPlan) -> str | Untrained | None:
        """The run or folder that teaches, or what is going to be trained for it."""
        word = lesson.teacher
        if word is None or not isinstance(word, Trained):
            return None if word is None else str(word)
        if word.node in self.runs:
            return self.runs[word.node]
        above = self.nodes[word.node].lesson
        if above is None:
            raise NotImplementedError
        return Untrained(
            network=above.network, options=self._options(above), teacher=self._teacher(above), method=above.method
        )
