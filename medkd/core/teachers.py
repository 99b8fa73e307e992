"""Which runs of a data set taught which: the one rule for reports, baselines, compressions and names of runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkd.core.run import RunDescription
from medkd.core.run_files import scored_teachers

_TOGETHER = " + "


@dataclass(frozen=True)
class Origin:
    """What taught a run, as far as the runs of its data set tell.

    Attributes:
        models: for each model that taught, the names of the run folders that it may be: one where that is known, none
            where it is not among the runs.
    """

    models: tuple[tuple[str, ...], ...] = ()

    @property
    def sure(self) -> tuple[str, ...]:
        """The run folders that taught beyond doubt."""
        return tuple(runs[0] for runs in self.models if len(runs) == 1)

    @property
    def only(self) -> str | None:
        """The run folder that taught, where one model did and it is known which."""
        return self.sure[0] if len(self.models) == 1 and self.sure else None

    @property
    def unclear(self) -> tuple[str, ...]:
        """The run folders of which one taught, where nobody knows which."""
        return next((runs for runs in self.models if len(runs) > 1), ())

    def doubt(self, run: str, teacher: str | None) -> str:
        """Why nobody knows what taught a run whose ``run.json`` names this teacher, and what helps; no full stop."""
        return (
            f"nobody knows whether {' or '.join(self.unclear)} taught {run}, since its run.json says '{teacher}' "
            f'alone; write the right one there, as "taught_by": ["{self.unclear[0]}"]'
        )


def short_name(run: Path) -> str:
    """Name of a run in the names of its students' runs: its network, and how it was distilled, or its tag."""
    network, *rest = run.name.split("__")
    return network if len(rest) < 2 else "-".join([network, *rest[1:2]])


def together(models: Iterable[str]) -> str:
    """Several models as ``teacher`` of ``run.json`` names them."""
    return _TOGETHER.join(models)


def apart(teacher: str | None) -> tuple[str, ...]:
    """The models that ``teacher`` of ``run.json`` names, of which several are named by their folders."""
    if teacher is None:
        return ()
    parts = tuple(teacher.split(_TOGETHER))
    return parts if all(os.path.isabs(part) for part in parts) else (teacher,)


def origins(runs: Mapping[Path, RunDescription]) -> dict[Path, Origin]:
    """Run folder → what taught it.

    ``taught_by`` of ``run.json`` says it. Files of older versions hold the short name alone, which several runs may
    have (assistants of different teachers, say); all of the same configuration that have it are meant then.

    Args:
        runs: every run of the data set; where some are missing, others might be taken for them.
    """
    places = {path: _places(path) for path in runs}
    found = {}
    for student, run in runs.items():
        models = []
        for text in run.taught_by or apart(run.teacher):
            meant = []
            for path, other in runs.items():
                if path != student and _is_meant(text, path, other, run, places[path]):
                    meant.append(path.name)
            models.append(tuple(meant))
        found[student] = Origin(tuple(models))
    return found


def _places(run: Path) -> frozenset[str]:
    """The folders of the model whose scores a run folder holds; none of a run that medkd trained."""
    found: set[str] = set()
    for record in scored_teachers(run).values():
        found |= {os.path.abspath(place) for place in (record.path, *record.former)}
    return frozenset(found)


def _is_meant(text: str, path: Path, run: RunDescription, student: RunDescription, places: frozenset[str]) -> bool:
    """Whether a student's ``run.json`` may mean this run by one of its teachers."""
    if student.taught_by and text == path.name:
        return True
    if places:  # many models' folders have the same name
        return os.path.abspath(text) in places
    alike = run.configuration == student.configuration and not student.taught_by
    return alike and text in (path.name, short_name(path))


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """A teacher that is going to be trained, for those that ask what fits together.

    Attributes:
        network: registry name.
        options: of its training, of the task's own kind.
        teacher: of its own, where it has one: as a command names it, or another that is not trained yet.
        method: with which that one teaches.
    """

    network: str
    options: Any
    teacher: str | Untrained | None = None
    method: str = "none"
