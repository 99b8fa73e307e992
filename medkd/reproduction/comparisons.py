"""How the rows of a recipe's table compare: with the student alone, with the teacher, and with each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import numpy as np

from medkd.core.run import Budget
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
from medkd.evaluation.report.data import ReportTask
from medkd.evaluation.statistics import Interval, PairedDifference, may_replace
from medkd.reproduction.recipe import Recipe
from medkd.reproduction.rows import Row


def mean_over_seeds(intervals: Sequence[Interval]) -> Interval:
    """The mean over the seeds; its bounds are the means of their bounds: they are over cases alone."""
    means = [interval.mean for interval in intervals]
    lows, highs = [interval.low for interval in intervals], [interval.high for interval in intervals]
    count = max(interval.n for interval in intervals)
    return Interval(float(np.mean(means)), float(np.mean(lows)), float(np.mean(highs)), count)


def compared(rows: Sequence[Row], task: ReportTask, margin: float, teachers: Sequence[str]) -> list[Row]:
    """The rows with their differences to the student alone and to the teacher, and p-values that are corrected.

    Args:
        rows: of the table.
        task: of its runs.
        margin: the loss of the main metric up to which a student may replace its teacher.
        teachers: with which students alone may be compared, see :func:`teachers_of_all`; with none where there are
            several.
    """
    return _corrected([_compared(row, rows, task, margin, teachers) for row in rows])


def teachers_of_all(recipe: Recipe) -> tuple[str, ...]:
    """The teachers with which a student alone may be compared: those that no other one teaches, and of several those
    that are there for all folds.
    """
    first = tuple(name for name, row in recipe.teachers.items() if row.taught_by is None)
    whole = tuple(name for name in first if set(recipe.folds_of(name)) == set(recipe.folds))
    return whole if len(first) > 1 and whole else first


def _compared(row: Row, rows: Sequence[Row], task: ReportTask, margin: float, teachers: Sequence[str]) -> Row:
    metric = task.main.key
    if row.kind == "teacher" or not row.scores:
        return row
    if row.kind == "taught":
        row = _beside_alone(row, rows, metric)
    judges = [row.teacher] if row.kind == "taught" else teachers
    teacher = next((other for other in rows if other.kind == "teacher" and [other.teacher] == list(judges)), None)
    difference = _difference(row, teacher, metric)
    if teacher is None or difference is None:
        return row
    scores = {"student": row.values[metric], "teacher": teacher.values[metric]}
    return replace(
        row,
        to_teacher=difference,
        judged_by=teacher.teacher,
        of_teacher=_larger(row, teacher, metric),
        replaces=may_replace(difference, margin, **scores, learnt=task.learnt),
    )


def _beside_alone(row: Row, rows: Sequence[Row], metric: str) -> Row:
    """With the difference to the same student alone: of several the one of the same budget, else of the nearest;
    of these the one of the most alike settings, else the first.
    """
    known = [other for other in rows if other.kind == "alone" and other.student == row.student and other.scores]
    alone = min(known, key=lambda other: _unlike(other, row), default=None)
    difference = _difference(row, alone, metric)
    if alone is None or difference is None:
        return row
    return replace(
        row,
        to_alone=difference,
        alone=alone.method,
        of_alone=_larger(row, alone, metric),
        budget=", ".join(_budgets(alone, row)),
    )


def _larger(first: Row, second: Row, metric: str) -> int:
    return max(first.values[metric].n, second.values[metric].n)


_SETTINGS = ("network", "mirror_axes", "precision", "speed", "weights", "backbone_weights", "protocol")


def _unlike(alone: Row, row: Row) -> tuple[bool, int, int]:
    """In what a student alone differs, what matters most first."""
    theirs, mine = alone.runs[0], row.runs[0]
    seen = [run.budget.epochs * run.budget.iterations_per_epoch * run.budget.batch_size for run in (theirs, mine)]
    settings = sum(getattr(theirs, name) != getattr(mine, name) for name in _SETTINGS)
    return any(_budgets(alone, row)), abs(seen[0] - seen[1]), settings


def _budgets(alone: Row, row: Row) -> Iterator[str]:
    """In what the budgets differ, but for the seed."""
    theirs, mine = alone.runs[0], row.runs[0]
    for part in fields(Budget):
        there, here = getattr(theirs.budget, part.name), getattr(mine.budget, part.name)
        if there != here and part.name != "seed":
            yield f"{part.name.replace('_', ' ')} {there:g} instead of {here:g}"
    there, here = ("×".join(map(str, run.network.patch_size)) for run in (theirs, mine))
    if there != here:
        yield f"patches of {there} instead of {here}"


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
    """Where no case has a score of its own (average precision): of the means over the seeds. A task that cannot draw
    seeds gives the widest bounds and the largest p of all pairs of them.
    """
    together = getattr(first.scores[0], "compare_seeds", None)
    if together is not None:
        difference: PairedDifference | None = together(first.scores, second.scores).of(metric)
        return difference
    found = _of_pairs(first, second, metric)
    if not found:
        return None
    mean = float(np.mean([one.mean for one in found]))
    low, high = min(one.low for one in found), max(one.high for one in found)
    return PairedDifference(mean, low, high, min(one.n for one in found), max(one.p for one in found))


def _of_pairs(first: Row, second: Row, metric: str) -> list[PairedDifference]:
    """The differences of each seed to each, as far as they are defined."""
    found = []
    for mine in first.scores:
        for theirs in second.scores:
            difference = mine.compare(theirs).of(metric)
            found += [] if difference is None else [difference]
    return found


def _corrected(rows: list[Row]) -> list[Row]:
    """p-values of a student's methods are one family."""
    result = list(rows)
    for student in {row.student for row in rows if row.to_alone is not None}:
        places = [place for place, row in enumerate(rows) if row.student == student and row.to_alone is not None]
        found = holm([rows[place].to_alone.p for place in places])  # type: ignore[union-attr]
        for place, p in zip(places, found, strict=True):
            result[place] = replace(result[place], p=p)
    return result


def ranked(
    rows: Sequence[Row], case: str
) -> tuple[dict[str, list[Rank]], dict[str, CriticalDifference], dict[str, str]]:
    """The order of each student's ways to train, what Nemenyi's test cannot tell apart, and why it is not permitted.

    Args:
        rows: of the table.
        case: what the task calls what has a score.
    """
    ranks, differences, unranked = {}, {}, {}
    for student, known in _scored_rows(rows).items():
        table = case_table([score for row in known for score in row.scores], case)
        means = _case_means(known, table)
        groups, unit = (None, case) if table is None else (table.groups, table.unit)
        if means:
            ranks[student] = rank_stability(means, groups=groups)
        found = critical_difference(means, groups)
        if found is None:
            shares = table is None or bool(table.values.shape[1])
            why = why_not_ranked(means, unit, groups) if shares else f"its rows share no {case} with a score"
            unranked[student] = why
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
        means[row.way] = table.values[start:end]
        start = end
    return means
