"""What a report shows: the runs of a data set and how they compare, whatever the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, Protocol

from medkd.core.run import RunDescription
from medkd.core.run_files import Cost
from medkd.core.teachers import Origin, apart
from medkd.core.timing import Spread, Timings
from medkd.evaluation.report.labels import tag_of
from medkd.evaluation.report.recipes import RecipeTable
from medkd.evaluation.statistics import Answer, Interval, PairedDifference, has_learnt, may_replace, patients_of

Role = Literal["teacher", "alone", "distilled"]
ROLES: tuple[Role, ...] = ("teacher", "alone", "distilled")
MARGIN = 0.01
"""The loss of Dice or average precision up to which a student may replace its teacher."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score of a table.

    Attributes:
        key: under which scores give it.
        name: for people, with its unit.
        decimals: that are worth showing.
        more_is_better: False for distances.
    """

    key: str
    name: str
    decimals: int = 3
    more_is_better: bool = True


class Differences(Protocol):
    """How two runs compare."""

    def of(self, metric: str, part: str = "") -> PairedDifference | None:
        """The paired difference of a structure or class (of all where empty); None where it is not defined."""
        ...


class Scores(Protocol):
    """What a report asks of the scores of a run."""

    @property
    def cases(self) -> Sequence[str]:
        """The scored cases."""
        ...

    @property
    def parts(self) -> Sequence[str]:
        """Names of the structures or classes that have scores."""
        ...

    def value(self, metric: str, part: str = "") -> Interval:
        """A metric of a structure or class, or of all where empty; its mean is NaN where it is not defined."""
        ...

    def compare(self, other: Any) -> Differences:
        """Paired differences to other scores of the same task, over the cases that both hold.

        Raises:
            DataError: they were scored differently.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """One run of the report.

    Attributes:
        path: run folder.
        run: its description.
        origin: the runs of the data set that taught it.
        role: ``teacher``, ``alone`` (a student without a teacher) or ``distilled``.
        label: a short name for tables and figures, different from every other run's.
        folds: the folds whose scores are shown, as text.
        scores: over these folds; None where nothing was scored.
        merit: the number by which runs of a role are ordered; −1 without scores.
        cost: size.
        log: one mapping per epoch of the first shown fold.
        time: of one case, where it was measured.
    """

    path: Path
    run: RunDescription
    role: Role
    origin: Origin = field(default_factory=Origin)
    label: str = ""
    folds: tuple[str, ...] = ()
    scores: Any = None
    merit: float = -1.0
    cost: Cost = field(default_factory=Cost)
    log: tuple[Mapping[str, Any], ...] = ()
    time: Spread | None = None

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.path.name

    @property
    def teacher_name(self) -> str:
        """The teachers' names without any folder; empty where there is none."""
        return " and ".join(PureWindowsPath(name).name for name in apart(self.run.teacher))


@dataclass(frozen=True, kw_only=True)
class ReportTask:
    """What the report of a task has of its own.

    Attributes:
        read: run folder, folds → scores.
        metrics: of the table of runs; the first one orders the runs and decides.
        learnt: a mean of the first metric below this is no better than nothing.
        progress: key of the log that validation writes while training, and its title.
        definitions: scores (None where no run has any) → in words, how every number was computed.
        sections: the report's further parts, as HTML, before and after the pictures.
        pictures: the part with pictures, as HTML.
        further: metrics of the table of numbers, where runs have them.
        part: what a score can be of: ``structure`` or ``class``.
        case: what was predicted: ``case`` or ``image``.
    """

    read: Callable[[Path, Sequence[int]], Scores]
    metrics: tuple[Metric, ...]
    learnt: float
    progress: tuple[str, str]
    definitions: Callable[[Any], dict[str, str]]
    sections: Callable[[Report], Sequence[str]]
    pictures: Callable[[Report], str]
    further: tuple[Metric, ...] = ()
    part: str = "structure"
    case: str = "case"

    @property
    def main(self) -> Metric:
        """The metric that decides."""
        return self.metrics[0]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a page shows.

    Attributes:
        title: the data set's name.
        task: of its runs.
        entries: the runs, teachers first, then students alone, then distilled ones by falling merit.
        margin: the loss of the first metric up to which a student may replace its teacher.
        raw: the raw data set, for pictures; None where there is none.
        timings: how the runs' times were measured; None where they were not.
        recipes: tables of recipes on this data set.
    """

    title: str
    task: ReportTask
    entries: tuple[RunEntry, ...]
    margin: float = MARGIN
    raw: Path | None = None
    timings: Timings | None = None
    recipes: tuple[RecipeTable, ...] = ()

    @cached_property
    def scored(self) -> tuple[RunEntry, ...]:
        """The runs that have scores."""
        return tuple(entry for entry in self.entries if entry.scores is not None)

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The task's, and of the further ones those that a run has."""
        found = [metric for metric in self.task.further if any(metric.key in e.scores.metrics for e in self.scored)]
        return (*self.task.metrics, *found)

    @cached_property
    def able(self) -> tuple[RunEntry, ...]:
        """The distilled students that may replace their teachers, by falling merit."""
        return tuple(e for e in self.scored if e.role == "distilled" and self.conclusion(e) == "yes")

    @cached_property
    def headline(self) -> RunEntry | None:
        """The run that the page is about: of the students that may replace their teachers the smallest, else the
        distilled student of the highest merit, else the first scored run.
        """
        if self.able:
            return min(self.able, key=lambda entry: entry.cost.parameters or inf)
        taught = [entry for entry in self.scored if entry.role == "distilled"]
        return next(iter(taught or self.scored), None)

    @cached_property
    def _compared(self) -> dict[tuple[str, str], Differences]:
        return {}

    @cached_property
    def patients(self) -> Mapping[str, str]:
        """Scored case → its patient, as any run knows it."""
        return patients_of([entry.scores for entry in self.scored])

    @property
    def unit(self) -> str:
        """What intervals and tests take for independent: ``patient`` where these are known, else the task's case."""
        return "patient" if self.patients else self.task.case

    def difference(
        self, first: RunEntry, second: RunEntry | None, metric: str = "", part: str = ""
    ) -> PairedDifference | None:
        """Paired difference ``first − second`` of a metric (the main one where empty); None where it is not defined."""
        if second is None or first.scores is None or second.scores is None:
            return None
        pair = first.name, second.name
        if pair not in self._compared:
            self._compared[pair] = first.scores.compare(second.scores)
        return self._compared[pair].of(metric or self.task.main.key, part)

    def has_learnt(self, entry: RunEntry, part: str = "") -> bool:
        """Whether a run scores better than nothing."""
        if entry.scores is None:
            return False
        return has_learnt(entry.scores.value(self.task.main.key, part), self.task.learnt)

    def conclusion(self, student: RunEntry, part: str = "") -> Answer:
        """Whether a student may replace its teacher."""
        return self.may_replace(student, self.teacher(student), part)

    def may_replace(self, first: RunEntry, second: RunEntry | None, part: str = "") -> Answer:
        """Whether one run may replace another one by the report's margin."""
        difference = self.difference(first, second, part=part)
        if second is None or first.scores is None or second.scores is None or difference is None:
            return "nothing"
        key = self.task.main.key
        return may_replace(
            difference,
            self.margin,
            student=first.scores.value(key, part),
            teacher=second.scores.value(key, part),
            learnt=self.task.learnt,
        )

    def teacher(self, entry: RunEntry) -> RunEntry | None:
        """The scored run that taught this one."""
        return teacher_of(entry, self.scored) if entry.role == "distilled" else None

    def alone(self, entry: RunEntry) -> RunEntry | None:
        """The same student trained alone."""
        return baseline_of(entry, self.scored) if entry.role == "distilled" else None

    def gap_closed(self, entry: RunEntry) -> float | None:
        """Share of the way from the student alone to its teacher that distillation went; None where a part is missing,
        where one of the three has learnt nothing, or where the gap or the gain is not clear, since dividing by noise
        says nothing.
        """
        teacher, alone = self.teacher(entry), self.alone(entry)
        if teacher is None or alone is None or not all(map(self.has_learnt, (teacher, alone, entry))):
            return None
        gap, gain = self.difference(teacher, alone), self.difference(entry, alone)
        if gap is None or gain is None:
            return None
        if not gap.clear or not gain.clear or gap.mean <= 0:
            return None
        return gain.mean / gap.mean


def baseline_of(entry: RunEntry, entries: Sequence[RunEntry]) -> RunEntry | None:
    """The same network alone, under the same configuration.

    Of several, method ``none`` comes before a run of ``medkd_train``, then the run's own budget, seed included, before
    another, then its own tag.
    """
    same = []
    for other in entries:
        if other is entry or other.role == "distilled" or other.scores is None:
            continue
        if _kind(other) == _kind(entry):
            same.append(other)
    return min(same, key=lambda other: _unlike(other, entry), default=None)


def teacher_of(entry: RunEntry, entries: Sequence[RunEntry]) -> RunEntry | None:
    """The run that taught this one, where one did, it is known which, and it is among ``entries``."""
    return next((other for other in entries if other.name == entry.origin.only), None)


def compare(first: RunEntry, second: RunEntry, metric: str, part: str = "") -> PairedDifference | None:
    """Paired difference ``first − second`` over the cases that both scored; None where there is none.

    Raises:
        DataError: the two were scored differently.
    """
    if first.scores is None or second.scores is None:
        return None
    differences: Differences = first.scores.compare(second.scores)
    return differences.of(metric, part)


def _unlike(alone: RunEntry, entry: RunEntry) -> tuple[bool, ...]:
    """In what a student alone differs, what matters most first."""
    return alone.run.method != "none", alone.run.budget != entry.run.budget, tag_of(alone) != tag_of(entry)


def _kind(entry: RunEntry) -> tuple[str, str, int]:
    return entry.run.network.name, entry.run.configuration, entry.run.network.width_divisor
