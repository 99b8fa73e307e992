"""A recipe's table as data: its rows, how they compare, and what can be said of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from typing import Any, Literal

from medkd.core.run import RunDescription
from medkd.evaluation.ranking import CriticalDifference, Rank
from medkd.evaluation.report.data import MARGIN, Metric
from medkd.evaluation.statistics import FEWEST, Answer, Interval, PairedDifference
from medkd.reproduction.recipe import Published

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
        runs: descriptions of the runs that have scores, one for each of these.
        to_alone: difference of the main metric to the same student alone; None where it is not known.
        alone: method of the row that :attr:`to_alone` is the difference to.
        of_alone: cases (or patients) of that row or of its own, of which there are more.
        budget: in what that row has another budget, ``epochs 24 instead of 96``; empty where in nothing.
        p: of that difference, corrected for the methods of this student (Holm).
        to_teacher: difference to the teacher.
        judged_by: name of that teacher, where there is a difference.
        of_teacher: as :attr:`of_alone`.
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
    runs: tuple[RunDescription, ...] = ()
    values: Mapping[str, Interval] = field(default_factory=dict)
    to_alone: PairedDifference | None = None
    alone: str | None = None
    of_alone: int = 0
    budget: str = ""
    p: float = nan
    to_teacher: PairedDifference | None = None
    judged_by: str | None = None
    of_teacher: int = 0
    replaces: Answer | None = None
    published: tuple[Published, ...] = ()
    failed: tuple[str, ...] = ()
    tuned: tuple[str, ...] = ()
    outdated: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()

    @property
    def way(self) -> str:
        """How a student is trained, ``kd from large``, or the teacher."""
        return (
            f"{self.method} from {self.teacher}" if self.method and self.teacher else self.method or str(self.teacher)
        )

    @property
    def uneven(self) -> bool:
        """Whether its seeds were scored on other cases each, as long as folds are missing."""
        return len({frozenset(score.cases) for score in self.scores}) > 1

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
        judges: names of several teachers none of which is that of the students alone, which are compared with none.
        unit: what intervals and tests take for independent: ``patient`` where these are known, else ``case`` or what
            the task calls it.
        counted: how many there are, as ``12 patients (24 cases)``; empty where no patients are known.
        margin: the loss up to which a student may replace its teacher.
        data: in what the data are not those of the recipe; empty where nobody knows of anything.
        prepared: of what the preparation of the data warned, and why it failed.
    """

    title: str
    source: str
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    ranks: Mapping[str, list[Rank]]
    differences: Mapping[str, CriticalDifference]
    unranked: Mapping[str, str] = field(default_factory=dict)
    judges: tuple[str, ...] = ()
    unit: str = "case"
    counted: str = ""
    margin: float = MARGIN
    data: str = ""
    prepared: tuple[str, ...] = ()
