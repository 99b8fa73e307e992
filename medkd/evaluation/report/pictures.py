"""Which runs the pictures of a report show, and which run chooses the cases."""

from __future__ import annotations

from collections.abc import Sequence

from medkd.evaluation.report.data import Report, Role, RunEntry

MOST_RUNS = 5


def judge_of(report: Report) -> RunEntry | None:
    """The run that ranks the cases: the one that the page is about, else the first with scores of single cases."""
    wanted = [report.headline, *report.scored]
    return next((entry for entry in wanted if entry is not None and entry.scores.cases), None)


def shown_beside(entries: Sequence[RunEntry], judge: RunEntry, most: int = MOST_RUNS) -> list[RunEntry]:
    """At most so many panels: a teacher, students alone and distilled ones, the judge always among them."""
    teachers, alone = _of_role(entries, "teacher"), _of_role(entries, "alone")
    order = [*teachers[:1], *alone[:1], judge, *_of_role(entries, "distilled")]
    order += [*teachers[1:], *alone[1:]]
    once = {entry.name: entry for entry in order}
    return list(once.values())[:most]


def _of_role(entries: Sequence[RunEntry], role: Role) -> list[RunEntry]:
    return [entry for entry in entries if entry.role == role]
