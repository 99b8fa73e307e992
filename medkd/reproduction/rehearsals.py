"""What the trainings of a recipe would refuse, asked of them before one begins: as ``--dry-run`` does, and before the
data are prepared as far as networks, methods and settings tell.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError, MedkdError, PlanError, RunError
from medkd.core.labels import LabelSpec
from medkd.core.paths import Root
from medkd.core.run import DATASET_FILE, PLANS_FILE
from medkd.core.serial import from_data
from medkd.core.splits import ALL
from medkd.core.teachers import Untrained
from medkd.reproduction.checks import task_of_network
from medkd.reproduction.graph import PREPARE, LessonPlan, Node, Trained
from medkd.reproduction.inner import check_folds
from medkd.reproduction.state import Record, runs_of
from medkd.tasks import TASKS, Task, task_of_dataset

NOT_PREPARED = (
    "the data are not prepared, so that only networks, methods and settings were asked; whether plan, labels, channels "
    "and cases fit is asked once they are"
)
_SHOWN = 3  # names in a line


@dataclass(frozen=True)
class Answer:
    """What is known of a training that is to be done.

    Attributes:
        name: of the run.
        reason: why it would not begin, or why nobody can say yet.
        open: whether nobody can say.
    """

    name: str
    reason: str
    open: bool = False


def rehearse_runs(
    nodes: Mapping[str, Node], records: Mapping[str, Record], dataset: str, root: Root, labels: Sequence[str] = ()
) -> Iterator[Answer]:
    """Answers of the trainings that are to be done, where they would not begin or nobody can say; those of a search are
    among them. Nothing is written or started. Of several seeds the first is asked.

    Args:
        nodes: that are asked for.
        records: those that count, see :func:`medkd.reproduction.state.standing`.
        dataset: full name.
        root: medkd's folders.
        labels: as the recipe names them for a data set that is not converted yet; empty where it does not.
    """
    ready = _was_prepared(nodes, records)
    remade = PREPARE in nodes and "--overwrite-plan" in nodes[PREPARE].words
    raw = root.raw_dataset(dataset) / DATASET_FILE
    there = raw.exists() and (root.preprocessed / dataset / PLANS_FILE).exists()
    runs = runs_of(records)
    if there and (ready or not remade):
        rehearsal: Rehearsal = Rehearsal(nodes, runs, root, dataset, ready)
    else:
        rehearsal = Foresight(nodes, runs, root, dataset, False, tuple(labels))
    for name, lesson in _first_of_each_row(nodes, runs).items():
        answer = rehearsal.answer_of_folds(name, lesson) or rehearsal.answer(name, lesson)
        if answer is not None:
            yield answer


def open_lines(answers: Iterable[Answer]) -> list[str]:
    """A line per reason for which nobody can say yet, with the runs that it is about."""
    found: dict[str, list[str]] = {}
    for answer in answers:
        if answer.open:
            found.setdefault(answer.reason, []).append(answer.name)
    lines = []
    for reason, names in found.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append(f"open: {', '.join(names[:_SHOWN])}{more}: {reason}")
    return lines


def _first_of_each_row(nodes: Mapping[str, Node], runs: Mapping[str, str]) -> dict[str, LessonPlan]:
    """The trainings that are to be done, by name; seeds differ in nothing that could be refused."""
    found: dict[tuple[Any, ...], tuple[str, LessonPlan]] = {}
    for name, node in nodes.items():
        if node.lesson is not None and name not in runs:
            found.setdefault((node.kind, node.teacher, node.student, node.method, node.fold), (name, node.lesson))
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
class Rehearsal:
    """Asks a task what it would do; what is wrong with data that are going to be prepared first is left to that.

    Attributes:
        nodes: that are asked for.
        runs: node → what it trained.
        root: medkd's folders.
        dataset: full name.
        ready: whether the recipe has prepared it.
        unknown: why nobody can say where a task cannot.
        of_folds: fold and number of inner folds → why they cannot be, or empty.
    """

    nodes: Mapping[str, Node]
    runs: Mapping[str, str]
    root: Root
    dataset: str
    ready: bool
    unknown: ClassVar[str] = "nobody can say before its teacher is trained"
    of_folds: dict[tuple[str, int], str] = field(default_factory=dict, kw_only=True)

    def answer_of_folds(self, name: str, lesson: LessonPlan) -> Answer | None:
        """Why a search has no inner folds; a training says of its fold itself whether it is there."""
        return self._without_folds(name, lesson) if lesson.inner_folds else None

    def _without_folds(self, name: str, lesson: LessonPlan) -> Answer | None:
        asked = self.nodes[name].fold, lesson.inner_folds
        if asked not in self.of_folds:
            self.of_folds[asked] = ""
            try:
                with _silence():
                    check_folds(self.root, self.dataset, *asked)
            except MedkdError as error:
                self.of_folds[asked] = str(error)
        return Answer(name, self.of_folds[asked]) if self.of_folds[asked] else None

    def answer(self, name: str, lesson: LessonPlan) -> Answer | None:
        """Why a training, or one of a search, would not begin, or why nobody can say; None where it would."""
        for variant in lesson.variants():
            answer = self._answer(name, variant)
            if answer is not None:
                return answer
        return None

    def _answer(self, name: str, lesson: LessonPlan) -> Answer | None:
        try:
            with _silence():
                self._ask(lesson, self.nodes[name].fold)
        except (DataError, PlanError) as error:
            return Answer(name, str(error)) if self.ready else Answer(name, NOT_PREPARED, open=True)
        except MedkdError as error:
            return Answer(name, str(error))
        except (NotImplementedError, RuntimeError):  # the task, or a method, needs a teacher's weights to tell
            return Answer(name, self.unknown, open=True)
        return None

    def _ask(self, lesson: LessonPlan, fold: str) -> None:
        task = task_of_dataset(self.dataset, self.root.raw.parent)
        task.dry_run(self.dataset, lesson.network, fold, self._options(task, lesson), **self._teaching(task, lesson))

    def _teaching(self, task: Task, lesson: LessonPlan) -> dict[str, Any]:
        return {} if lesson.teacher is None else {"teacher": self._teacher(task, lesson), "method": lesson.method}

    def _options(self, task: Task, lesson: LessonPlan) -> Any:
        values = {name: value for name, value in lesson.settings.items() if value is not None and name != "track"}
        options = from_data(task.column("training_options"), values, "")
        parameters = dict(lesson.parameters)
        return replace(options, root=Path(self.root.raw.parent), resume=True, method_parameters=parameters)

    def _teacher(self, task: Task, lesson: LessonPlan) -> str | Untrained | None:
        """The run or folder that teaches, or what is going to be trained for it."""
        word = lesson.teacher
        if isinstance(word, LessonPlan):
            return self._untrained(task, word)
        if word is None or not isinstance(word, Trained):
            return None if word is None else str(word)
        if word.node in self.runs:
            return self.runs[word.node]
        above = self.nodes[word.node].lesson
        if above is None:
            raise NotImplementedError
        return self._untrained(task, above)

    def _untrained(self, task: Task, lesson: LessonPlan) -> Untrained:
        return Untrained(
            network=lesson.network,
            options=self._options(task, lesson),
            teacher=self._teacher(task, lesson),
            method=lesson.method,
        )


@dataclass(frozen=True)
class Foresight(Rehearsal):
    """Before the data are there, or prepared: asks a task what it would refuse whatever they are. What that leaves open
    is open for every training. Folds of the same row are asked once, but for ``all``.
    """

    unknown: ClassVar[str] = "the data are not prepared, and before nothing of it can be asked"
    labels: tuple[str, ...] = ()
    known: dict[tuple[Any, ...], Answer] = field(default_factory=dict)

    def answer_of_folds(self, name: str, lesson: LessonPlan) -> Answer | None:
        """Likewise, or that the data that are to be prepared do not have the fold."""
        return self._without_folds(name, lesson)

    def answer(self, name: str, lesson: LessonPlan) -> Answer | None:
        """Why a training, or one of a search, would not begin; never None."""
        node = self.nodes[name]
        row = (node.kind, node.teacher, node.student, node.method, node.fold == ALL)
        if row not in self.known:
            self.known[row] = super().answer(name, lesson) or Answer(name, NOT_PREPARED, open=True)
        return replace(self.known[row], name=name)

    def _ask(self, lesson: LessonPlan, fold: str) -> None:
        task = TASKS[task_of_network(lesson.network)]
        described = self.root.raw_dataset(self.dataset) / DATASET_FILE
        facts: dict[str, Any] = {"labels": LabelSpec.from_names(self.labels)} if self.labels else {}
        if described.exists():
            description = DatasetDescription.load(described)
            facts = {"labels": description.labels, "channels": description.channel_names}
            if description.task != task.name:
                raise RunError(
                    f"{self.dataset} is a data set for {description.task}, but '{lesson.network}' is for {task.name}; "
                    "name another data set, or other networks."
                )
        if task.foresee is None:
            raise NotImplementedError
        teaching = self._teaching(task, lesson)
        task.column("foresee")(lesson.network, fold, self._options(task, lesson), **teaching, **facts)
