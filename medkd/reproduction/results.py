"""The scores of a recipe's rows as far as they are known, and what can be said of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medkd.core.numbers import whole_number
from medkd.core.run import RUN_FILE, VALIDATION_SUMMARY, RunDescription
from medkd.core.serial import load
from medkd.evaluation.report.data import MARGIN, ReportTask
from medkd.evaluation.report.read import task_of
from medkd.evaluation.statistics import count_patients, patients_of
from medkd.evaluation.table import counted_cases
from medkd.reproduction.comparisons import compared, mean_over_seeds, ranked, teachers_of_all
from medkd.reproduction.graph import CONVERT, PREPARE, Node, Tuned
from medkd.reproduction.recipe import Published, Recipe
from medkd.reproduction.rows import Kind, Results, Row
from medkd.reproduction.search import BEST_FILE, Best, shown
from medkd.reproduction.state import Record, standing


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
    prepared = tuple(_of_the_data(records))
    if task is None:
        return Results(
            title=recipe.title,
            source=recipe.source,
            metrics=(),
            rows=tuple(rows),
            ranks={},
            differences={},
            margin=margin,
            prepared=prepared,
        )
    teachers = teachers_of_all(recipe)
    rows = compared(rows, task, margin, teachers)
    counted = _counted(rows, task.case)
    ranks, differences, unranked = ranked(rows, task.case)
    return Results(
        title=recipe.title,
        source=recipe.source,
        metrics=task.metrics,
        rows=tuple(rows),
        ranks=ranks,
        differences=differences,
        unranked=unranked,
        judges=teachers if len(teachers) > 1 else (),
        unit="patient" if counted else task.case,
        counted=counted,
        margin=margin,
        prepared=prepared,
    )


def _of_the_data(records: Mapping[str, Record]) -> Iterator[str]:
    """What became of conversion and preparation, which have no row."""
    for name in (CONVERT, PREPARE):
        record = records.get(name)
        if record is None:
            continue
        if record.status == "failed":
            yield f"failed: {name}: {record.error}"
        yield from (f"warned: {name}: {text}" for text in record.warnings)


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
    scores, runs, task = _scores(done, records)
    metrics = () if task is None else task.metrics
    row = Row(
        kind=_kind(recipe, first),
        teacher=first.teacher,
        student=first.student,
        method=first.method,
        done=len(done),
        total=len(group),
        scores=tuple(scores),
        runs=tuple(runs),
        values={metric.key: mean_over_seeds([score.value(metric.key) for score in scores]) for metric in metrics},
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


def _scores(
    done: Sequence[Node], records: Mapping[str, Record]
) -> tuple[list[Any], list[RunDescription], ReportTask | None]:
    """The scores of each seed over its folds, and what its run is."""
    folds: dict[Path, list[int]] = {}
    for node in done:
        folder = Path(records[node.name].folder)
        number = whole_number(node.fold)
        if number is not None and (folder / VALIDATION_SUMMARY).exists():
            folds.setdefault(folder.parent, []).append(number)
    found, runs, task = [], [], None
    for run, numbers in sorted(folds.items()):
        runs.append(load(RunDescription, run / RUN_FILE))
        task = task_of(runs[-1])
        found.append(task.read(run, sorted(numbers)))
    return found, runs, task


def _published(recipe: Recipe, node: Node) -> Iterator[Published]:
    for row in recipe.published:
        if row.is_about(node.teacher, node.student, node.method):
            yield row
