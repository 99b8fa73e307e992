"""What the trainings of a recipe would refuse, asked of them before one begins: as ``--dry-run`` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medkd.core.errors import MedkdError
from medkd.core.paths import Root
from medkd.core.run import PLANS_FILE
from medkd.core.serial import from_data
from medkd.reproduction.graph import PREPARE, LessonPlan, Node, Trained
from medkd.reproduction.state import Record, runs_of
from medkd.tasks import Task, task_of_dataset


def refused_runs(
    nodes: Mapping[str, Node], records: Mapping[str, Record], dataset: str, root: Root
) -> Iterator[tuple[str, str]]:
    """Name and reason of every training that is to be done and would not begin, where that can be known: the data set
    is prepared, and the teacher is there. Nothing is written or started. Of several seeds the first is asked.

    Args:
        nodes: that are asked for.
        records: those that count, see :func:`medkd.reproduction.state.standing`.
        dataset: full name.
        root: medkd's folders.
    """
    if not _is_prepared(nodes, records, dataset, root):
        return
    task, runs = task_of_dataset(dataset, root.raw.parent), runs_of(records)
    asked = set[tuple[Any, ...]]()
    for name, node in nodes.items():
        lesson = node.lesson
        if lesson is None or name in runs or not _teacher_is_there(lesson, runs):
            continue
        row = (node.teacher, node.student, node.method, node.fold)
        if row in asked:
            continue
        asked.add(row)
        reason = _reason(task, lesson, node.fold, dataset, runs, root)
        if reason is not None:
            yield name, reason


def _is_prepared(nodes: Mapping[str, Node], records: Mapping[str, Record], dataset: str, root: Root) -> bool:
    """Whether the plan is there with which the trainings will begin."""
    prepare = nodes.get(PREPARE)
    if prepare is None or not (root.preprocessed / dataset / PLANS_FILE).exists():
        return False
    record = records.get(PREPARE)
    done = record is not None and record.status == "done" and list(record.command) == prepare.command({})
    return done or "--overwrite-plan" not in prepare.words


def _teacher_is_there(lesson: LessonPlan, runs: Mapping[str, str]) -> bool:
    return not isinstance(lesson.teacher, Trained) or lesson.teacher.node in runs


def _reason(task: Task, lesson: LessonPlan, fold: str, dataset: str, runs: Mapping[str, str], root: Root) -> str | None:
    """Why a training would not begin; None where it would."""
    teaching: dict[str, Any] = {}
    if lesson.teacher is not None:
        named = runs[lesson.teacher.node] if isinstance(lesson.teacher, Trained) else str(lesson.teacher)
        teaching = {"teacher": named, "method": lesson.method}
    try:
        values = {name: value for name, value in lesson.settings.items() if value is not None and name != "track"}
        options = from_data(task.column("training_options"), values, "")
        options = replace(options, root=Path(root.raw.parent), resume=True, method_parameters=dict(lesson.parameters))
        task.dry_run(dataset, lesson.network, fold, options, **teaching)
    except MedkdError as error:
        return str(error)
    return None
