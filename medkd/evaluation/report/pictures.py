"""Which runs the pictures of a report show, and which run chooses the cases."""

from __future__ import annotations

from collections.abc import Sequence

from medkd.evaluation.report.data import RunEntry

MOST_RUNS = 5


def judge_of(entries: Sequence[RunEntry]) -> RunEntry | None:
    """The run that ranks the cases: the first distilled one, else the first."""
    distilled = [entry for entry in entries if entry.role == "distilled"]
    return next(iter([*distilled, *entries]), None)


def shown_beside(entries: Sequence[RunEntry], judge: RunEntry, most: int = MOST_RUNS) -> list[RunEntry]:
    """At most so many panels: a teacher, students alone and distilled ones, the judge always among them."""
    teachers = [entry for entry in entries if entry.role == "teacher"]
    alone = [entry for entry in entries if entry.role == "alone"]
    distilled = [entry for entry in entries if entry.role == "distilled"]
    order = [*teachers[:1], *alone[:1], judge, *distilled, *teachers[1:], *alone[1:]]
    return list({entry.name: entry for entry in order}.values())[:most]
