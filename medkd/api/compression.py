"""What a teacher's compression came to: the trade-off of size, speed and score, and the student to take."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path

from medkd.core.files import write_json
from medkd.core.serial import to_data
from medkd.core.splits import SPLITS_FILE
from medkd.core.timing import Timings, readable_seconds
from medkd.evaluation.report.data import Report, RunEntry
from medkd.evaluation.report.read import read_report
from medkd.evaluation.statistics import FEWEST, Interval
from medkd.evaluation.table import counted_cases, format_interval

_WORDS = {"yes": "yes", "no": "no", "open": "not shown", "nothing": "not learnt"}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its interval; None where there is none.

    Attributes:
        mean: over cases.
        low: lower bound, over patients where they are known, else over cases.
        high: upper bound.
        cases: how many there are.
        patients: how many the interval is over; None where none are known.
    """

    mean: float | None
    low: float | None
    high: float | None
    cases: int
    patients: int | None = None

    def units(self) -> int:
        """What the interval is over, counted."""
        return self.cases if self.patients is None else self.patients

    @property
    def unit(self) -> str:
        """What that is."""
        return "cases" if self.patients is None else "patients"


@dataclass(frozen=True, kw_only=True)
class CompressedRow:
    """A model of the table.

    Attributes:
        run: name of its run folder.
        role: ``teacher``, ``student``, or ``alone`` for the student without the teacher's weights.
        width_divisor: by how much the teacher's channels are divided.
        parameters: trainable parameters.
        gflops: of one patch, a multiply-add counted as two.
        seconds: for one scan, the median of all that were measured in turns.
        dice: mean over structures and cases.
        difference: of the Dice to the teacher's, case by case; its interval is over patients where they are known.
        within: whether the interval of the difference lies above minus the tolerance: ``yes``, ``no``, ``open`` where
            it holds it, ``few`` where there are too few cases (or patients) to say, ``nothing`` where it or the teacher
            has learnt nothing; None for the teacher.
    """

    run: str
    role: str
    width_divisor: int
    parameters: int | None
    gflops: float | None
    seconds: float | None
    dice: Estimate
    difference: Estimate | None
    within: str | None


@dataclass(frozen=True, kw_only=True)
class Compression:
    """The result of :func:`medkd.compress`.

    Attributes:
        dataset: full name.
        teacher: the model, as it was given.
        fold: on whose validation cases all were scored.
        tolerance: loss of Dice that is accepted.
        rows: the teacher first, then students by falling size, the student alone last.
        recommended: run of the smallest student within the tolerance; None where there is none.
        device: where seconds were measured.
        report: the page with all of them.
    """

    dataset: str
    teacher: str
    fold: str
    tolerance: float
    rows: tuple[CompressedRow, ...]
    recommended: str | None
    device: str
    report: str
    schema: int = 1

    def save(self, path: Path) -> Path:
        """Write it as JSON."""
        write_json(path, to_data(self))
        return path

    def lines(self) -> list[str]:
        """The table and the recommendation, for people."""
        head = ("", "parameters", "GFLOPs", f"a scan ({self.device})", "Dice", "against teacher", "within")
        table = [head, *(_cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for cells in table:
            padded = [cells[0].ljust(widths[0])]
            padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
            lines.append("  ".join(padded).rstrip())
        return [*lines, *self._counted(), "", self.advice()]

    def _counted(self) -> list[str]:
        """What the intervals are over, where it is not cases."""
        dice = self.rows[0].dice
        if dice.patients is None:
            return []
        return [f"intervals of fold {self.fold} are over {counted_cases(dice.cases, dice.patients)}"]

    def advice(self) -> str:
        """Which student to take, in a sentence."""
        chosen = [row for row in self.rows if row.run == self.recommended]
        if not chosen:
            return f"recommended: none; {self._why_none()}"
        row, teacher = chosen[0], self.rows[0]
        share = ""
        if row.parameters and teacher.parameters:
            share = f", {100 * row.parameters / teacher.parameters:.2g} % of the teacher's parameters"
        return f"recommended: {row.run} (1/{row.width_divisor} of the channels{share})"

    def _why_none(self) -> str:
        """What keeps every student from being recommended, and what helps against just that."""
        students = [row for row in self.rows if row.role == "student"]
        answers = {row.within for row in students}
        if "few" in answers and answers <= {"few", "nothing"}:
            counted = max((row.difference for row in students if row.difference is not None), key=Estimate.units)
            return (
                f"{counted.units()} {counted.unit} are too few to tell, at least {FEWEST} are needed. Label more, or "
                f"write a {SPLITS_FILE} whose fold {self.fold} holds out that many."
            )
        if answers == {"nothing"}:
            return (
                "no student, or not even the teacher, has learnt something (its Dice is next to nothing). Train "
                "longer, or try smaller --sizes."
            )
        return (
            "of no student that has learnt something does the 95 % interval lie above the "
            f"teacher's Dice - {self.tolerance:g}. Train longer, try smaller --sizes, or accept a larger --tolerance."
        )


def _cells(row: CompressedRow) -> tuple[str, ...]:
    names = {
        "teacher": "teacher",
        "student": f"1/{row.width_divisor} from the teacher",
        "alone": f"1/{row.width_divisor} alone",
    }
    return (
        names[row.role],
        "–" if row.parameters is None else f"{row.parameters:,}",
        "–" if row.gflops is None else f"{row.gflops:.3g}",
        "–" if row.seconds is None else readable_seconds(row.seconds),
        _shown(row.dice),
        "" if row.difference is None else _shown(row.difference),
        _within(row),
    )


def _within(row: CompressedRow) -> str:
    return {**_WORDS, "few": f"too few {row.dice.unit}"}.get(row.within or "", "")


def _shown(value: Estimate) -> str:
    mean, low, high = (nan if number is None else number for number in (value.mean, value.low, value.high))
    return format_interval(Interval(mean, low, high, value.cases), 4)


def read_compression(
    results: Path, runs: Sequence[tuple[str, str]], *, teacher: str, fold: str, tolerance: float, report: Path
) -> Compression:
    """Put together what the runs of a compression came to.

    Args:
        results: results folder of the data set.
        runs: name and role of each run, the teacher first.
        teacher: the model, as it was given.
        fold: of all of them.
        tolerance: loss of Dice that is accepted.
        report: the page.
    """
    roles = dict(runs)
    found = read_report(results, fold, list(roles), margin=tolerance)
    entries = {entry.name: entry for entry in found.entries}
    timings = Timings.load(results)
    first = entries[runs[0][0]]
    rows = tuple(_row(found, entries[name], role, first, timings) for name, role in runs)
    good = [row for row in rows if row.role == "student" and row.within == "yes"]
    best = min(good, key=lambda row: row.parameters or 0, default=None)
    return Compression(
        dataset=results.name,
        teacher=teacher,
        fold=fold,
        tolerance=tolerance,
        rows=rows,
        recommended=best.run if best else None,
        device="" if timings is None else timings.device,
        report=str(report),
    )


def _row(report: Report, entry: RunEntry, role: str, teacher: RunEntry, timings: Timings | None) -> CompressedRow:
    spread = timings.of(entry.name) if timings else None
    difference = None if role == "teacher" else report.difference(entry, teacher)
    own, theirs = set(entry.scores.cases), set(teacher.scores.cases)
    return CompressedRow(
        run=entry.name,
        role=role,
        width_divisor=entry.run.network.width_divisor,
        parameters=entry.cost.parameters,
        gflops=None if entry.cost.macs is None else 2e-9 * entry.cost.macs,
        seconds=None if spread is None else spread.median,
        dice=_estimate(entry.scores.value(report.task.main.key), own, report.patients),
        difference=None if difference is None else _estimate(difference, own & theirs, report.patients),
        within=None if difference is None else report.may_replace(entry, teacher),
    )


def _estimate(value: Interval, cases: Collection[str], patients: Mapping[str, str]) -> Estimate:
    numbers = [number if isfinite(number) else None for number in (value.mean, value.low, value.high)]
    known = {"cases": len(cases), "patients": value.n} if patients else {"cases": value.n}
    return Estimate(mean=numbers[0], low=numbers[1], high=numbers[2], **known)
