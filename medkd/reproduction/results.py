"""The scores of a recipe's rows as far as they are known, and what can be said of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medkd.core.numbers import whole_number
from medkd.core.run import RUN_FILE, VALIDATION_SUMMARY, RunDescription
from medkd.core.serial import load
from medkd.evaluation.ranking import (
    CaseTable,
    CriticalDifference,
    Rank,
    case_table,
    critical_difference,
    crossed_difference,
    holm,
    rank_stability,
    why_not_ranked,
)
from medkd.evaluation.report.data import MARGIN, Metric, ReportTask
from medkd.evaluation.report.read import task_of
from medkd.evaluation.statistics import (
    FEWEST,
    Answer,
    Interval,
    PairedDifference,
    count_patients,
    may_replace,
    patients_of,
)
from medkd.evaluation.table import counted_cases
from medkd.reproduction.graph import Node, Tuned
from medkd.reproduction.recipe import Published, Recipe
from medkd.reproduction.search import BEST_FILE, Best, shown
from medkd.reproduction.state import Record, standing

Kind = Literal["teacher", "alone", "taught"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table.

    Attributes:
        kind: ``teacher``, ``alone`` or ``taught``.
        teacher: name in the recipe; None for a student alone.
        student: name in the recipe; None for a teacher.
        method: name in the recipe; None for a teacher.
        done: runs that are done.
        total: runs that the recipe has.
        scores: of each seed, over the folds that are done.
        values: metric → mean over seeds and cases, with the interval over cases or patients.
        to_alone: difference of the main metric to the same student alone; None where it is not known.
        p: of that difference, corrected for the methods of this student (Holm).
        to_teacher: difference to the teacher.
        replaces: whether it may replace the teacher by the margin; None without a teacher's score.
        published: the paper's rows.
        failed: why runs failed.
        tuned: what searches found for it, a line per fold.
        outdated: why runs that were done do not count any longer.
        warned: what runs that are done warned of.
    """

    kind: Kind
    teacher: str | None
    student: str | None
    method: str | None
    done: int
    total: int
    scores: tuple[Any, ...] = ()
    values: Mapping[str, Interval] = field(default_factory=dict)
    to_alone: PairedDifference | None = None
    p: float = nan
    to_teacher: PairedDifference | None = None
    replaces: Answer | None = None
    published: tuple[Published, ...] = ()
    failed: tuple[str, ...] = ()
    tuned: tuple[str, ...] = ()
    outdated: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The row in a word or two."""
        parts = [self.student or self.teacher or "", self.method or ""]
        return " ".join(part for part in parts if part)

    @property
    def told_apart(self) -> bool | None:
        """Whether it differs from the student alone; None where there is nothing to compare."""
        if self.to_alone is None:
            return None
        return self.to_alone.n >= FEWEST and self.to_alone.excludes_zero and self.p < 0.05


@dataclass(frozen=True, kw_only=True)
class Results:
    """The table.

    Attributes:
        title: of the recipe.
        source: its paper.
        metrics: of the task; the first one decides.
        rows: teachers first, then students.
        ranks: student → its ways to train by their place; empty where a score per case is not defined or missing.
        differences: student → what Nemenyi's test cannot tell apart.
        unranked: student → why that test is not permitted.
        unit: what intervals and tests take for independent: ``patient`` where these are known, else ``case`` or what
            the task calls it.
        counted: how many there are, as ``12 patients (24 cases)``; empty where no patients are known.
        margin: the loss up to which a student may replace its teacher.
        data: in what the data are not those of the recipe; empty where nobody knows of anything.
    """

    title: str
    source: str
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    ranks: Mapping[str, list[Rank]]
    differences: Mapping[str, CriticalDifference]
    unranked: Mapping[str, str] = field(default_factory=dict)
    unit: str = "case"
    counted: str = ""
    margin: float = MARGIN
    data: str = ""


def collect(
    recipe: Recipe, nodes: Mapping[str, Node], records: Mapping[str, Record], margin: float = MARGIN
) -> Results:
    """Read what the runs that are done scored.

    Args:
        recipe: whose table it is.
        nodes: all of its runs.
        records: what became of them.
        margin: the loss of the main metric up to which a student may replace its teacher.
    """
    now = standing(nodes, records)
    grouped: dict[tuple[str | None, str | None, str | None], list[Node]] = {}
    for node in nodes.values():
        if node.kind in ("teacher", "student"):
            grouped.setdefault((node.teacher, node.student, node.method), []).append(node)
    rows, task = [], None
    for group in grouped.values():
        searches = _searches(group, nodes)
        row, found = _row(recipe, group, searches, now.records)
        again = tuple(
            f"{node.name}: {now.outdated[node.name]}" for node in (*searches, *group) if node.name in now.outdated
        )
        rows.append(replace(row, tuned=tuple(_tuned(searches, now.records)), outdated=again))
        task = task or found
    if task is None:
        return Results(
            title=recipe.title,
            source=recipe.source,
            metrics=(),
            rows=tuple(rows),
            ranks={},
            differences={},
            margin=margin,
        )
    compared = _corrected([_compared(row, rows, task, margin) for row in rows])
    counted = _counted(compared, task.case)
    ranks, differences, unranked = _ranked(compared, task.case)
    return Results(
        title=recipe.title,
        source=recipe.source,
        metrics=task.metrics,
        rows=tuple(compared),
        ranks=ranks,
        differences=differences,
        unranked=unranked,
        unit="patient" if counted else task.case,
        counted=counted,
        margin=margin,
    )


def _counted(rows: Sequence[Row], case: str) -> str:
    scores = [score for row in rows for score in row.scores]
    cases = list(dict.fromkeys(name for score in scores for name in score.cases))
    patients = count_patients(cases, patients_of(scores))
    return "" if patients is None else counted_cases(len(cases), patients, case)


def _searches(group: Sequence[Node], nodes: Mapping[str, Node]) -> list[Node]:
    """The searches whose values the runs of a row are given."""
    names = dict.fromkeys(word.node for node in group for word in node.words if isinstance(word, Tuned))
    return [nodes[name] for name in names]


def _row(
    recipe: Recipe, group: Sequence[Node], searches: Sequence[Node], records: Mapping[str, Record]
) -> tuple[Row, ReportTask | None]:
    first = group[0]
    known = [(node, records[node.name].status) for node in group if node.name in records]
    done = [node for node, status in known if status == "done"]
    scores, task = _scores(done, records)
    metrics = () if task is None else task.metrics
    row = Row(
        kind=_kind(recipe, first),
        teacher=first.teacher,
        student=first.student,
        method=first.method,
        done=len(done),
        total=len(group),
        scores=tuple(scores),
        values={metric.key: _mean([score.value(metric.key) for score in scores]) for metric in metrics},
        published=tuple(_published(recipe, first)),
        failed=tuple(_failures([*searches, *group], records)),
        warned=tuple(_warnings([*searches, *done], records)),
    )
    return row, task


def _failures(known: Sequence[Node], records: Mapping[str, Record]) -> Iterator[str]:
    for node in known:
        record = records.get(node.name)
        if record is not None and record.status == "failed":
            yield f"{node.name}: {record.error}"


def _warnings(known: Sequence[Node], records: Mapping[str, Record]) -> Iterator[str]:
    for node in known:
        record = records.get(node.name)
        for text in () if record is None else record.warnings:
            yield f"{node.name}: {text}"


def _tuned(searches: Sequence[Node], records: Mapping[str, Record]) -> Iterator[str]:
    """What searches found for the runs of a row, one line per search."""
    for node in searches:
        record = records.get(node.name)
        if record is None or record.status != "done" or not (Path(record.folder) / BEST_FILE).exists():
            continue
        best = load(Best, Path(record.folder) / BEST_FILE)
        yield (
            f"{node.name}: {shown(best.parameters)} (trial {best.trial} of {best.trials}, {best.metric} "
            f"{best.score:.4f} on inner folds of {best.cases} cases)"
        )


def _kind(recipe: Recipe, node: Node) -> Kind:
    if node.student is None or node.method is None:
        return "teacher"
    return "taught" if recipe.methods[node.method].needs_teacher else "alone"


def _scores(done: Sequence[Node], records: Mapping[str, Record]) -> tuple[list[Any], ReportTask | None]:
    """The scores of each seed over its folds."""
    folds: dict[Path, list[int]] = {}
    for node in done:
        folder = Path(records[node.name].folder)
        number = whole_number(node.fold)
        if number is not None and (folder / VALIDATION_SUMMARY).exists():
            folds.setdefault(folder.parent, []).append(number)
    found, task = [], None
    for run, numbers in sorted(folds.items()):
        task = task_of(load(RunDescription, run / RUN_FILE))
        found.append(task.read(run, sorted(numbers)))
    return found, task


def _published(recipe: Recipe, node: Node) -> Iterator[Published]:
    for row in recipe.published:
        if row.is_about(node.teacher, node.student, node.method):
            yield row


def _mean(intervals: Sequence[Interval]) -> Interval:
    """The mean over the seeds; its bounds are the means of their bounds, as their cases are the same."""
    means = [interval.mean for interval in intervals]
    lows, highs = [interval.low for interval in intervals], [interval.high for interval in intervals]
    count = max(interval.n for interval in intervals)
    return Interval(float(np.mean(means)), float(np.mean(lows)), float(np.mean(highs)), count)


def _compared(row: Row, rows: Sequence[Row], task: ReportTask, margin: float) -> Row:
    metric = task.main.key
    if row.kind == "teacher" or not row.scores:
        return row
    if row.kind == "taught":
        alone = _first(rows, "alone", student=row.student)
        row = replace(row, to_alone=_difference(row, alone, metric))
    taught_by = _first(rows, "teacher", teacher=row.teacher) if row.kind == "taught" else _first(rows, "teacher")
    difference = _difference(row, taught_by, metric)
    if taught_by is None or difference is None:
        return row
    scores = {"student": row.values[metric], "teacher": taught_by.values[metric]}
    return replace(row, to_teacher=difference, replaces=may_replace(difference, margin, **scores, learnt=task.learnt))


def _first(rows: Sequence[Row], kind: Kind, **names: str | None) -> Row | None:
    """The first row of a kind with these names."""
    for row in rows:
        if row.kind == kind and all(getattr(row, key) == name for key, name in names.items()):
            return row
    return None


def _difference(first: Row, second: Row | None, metric: str) -> PairedDifference | None:
    if second is None or not first.scores or not second.scores:
        return None
    table = case_table([*first.scores, *second.scores])
    if table is not None:
        split = len(first.scores)
        found = crossed_difference(table.values[:split], table.values[split:], groups=table.groups)
        return found if np.isfinite(found.mean) else None
    return _mean_difference(first, second, metric)


def _mean_difference(first: Row, second: Row, metric: str) -> PairedDifference | None:
    """Where no case has a score of its own (average precision): the mean over the seeds, bounds and p likewise."""
    pairs = [(mine, theirs) for mine in first.scores for theirs in second.scores]
    found = []
    for mine, theirs in pairs:
        difference = mine.compare(theirs).of(metric)
        if difference is not None:
            found.append(difference)
    if not found:
        return None
    mean = _mean(found)
    return PairedDifference(mean.mean, mean.low, mean.high, mean.n, max(difference.p for difference in found))


def _corrected(rows: list[Row]) -> list[Row]:
    """p-values of a student's methods are one family."""
    result = list(rows)
    for student in {row.student for row in rows if row.to_alone is not None}:
        places = [place for place, row in enumerate(rows) if row.student == student and row.to_alone is not None]
        found = holm([rows[place].to_alone.p for place in places])  # type: ignore[union-attr]
        for place, p in zip(places, found, strict=True):
            result[place] = replace(result[place], p=p)
    return result


def _ranked(
    rows: Sequence[Row], case: str
) -> tuple[dict[str, list[Rank]], dict[str, CriticalDifference], dict[str, str]]:
    ranks, differences, unranked = {}, {}, {}
    for student, known in _scored_rows(rows).items():
        table = case_table([score for row in known for score in row.scores], case)
        means = _case_means(known, table)
        groups, unit = (None, case) if table is None else (table.groups, table.unit)
        if means:
            ranks[student] = rank_stability(means, groups=groups)
        found = critical_difference(means, groups)
        if found is None:
            unranked[student] = why_not_ranked(means, unit, groups)
        else:
            differences[student] = found
    return ranks, differences, unranked


def _scored_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Student → its rows that have scores, where there are two at least."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.student is not None and row.scores:
            found.setdefault(row.student, []).append(row)
    return {student: known for student, known in found.items() if len(known) > 1}


def _case_means(rows: Sequence[Row], table: CaseTable | None) -> dict[str, np.ndarray]:
    """Way to train → the main metric ``(seeds, cases, structures)``; empty where cases have none."""
    if table is None or not table.values.shape[1]:
        return {}
    means, start = {}, 0
    for row in rows:
        end = start + len(row.scores)
        origin = f" from {row.teacher}" if row.teacher else ""
        means[f"{row.method}{origin}"] = table.values[start:end]
        start = end
    return means
