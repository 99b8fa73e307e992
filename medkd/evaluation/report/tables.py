"""The report's numbers for a spreadsheet and for a paper: CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from math import isfinite

from medkd.evaluation.report.data import Report, RunEntry
from medkd.evaluation.statistics import Interval, patients_of

COLUMNS = (
    *("run", "label", "role", "metric", "part", "mean", "low", "high", "n"),
    *("minus_teacher", "minus_teacher_low", "minus_teacher_high"),
    *("minus_alone", "minus_alone_low", "minus_alone_high"),
    *("parameters", "multiply_adds", "seconds"),
    "unit",
)

_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)


def csv_text(report: Report) -> str:
    """One line per run, metric and structure or class (empty: all together); undefined numbers are empty, and what was
    gained over a student alone that has learnt nothing. Intervals are over ``n`` of the ``unit``.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in report.scored:
        writer.writerows(_rows(report, entry))
    return buffer.getvalue()


def _rows(report: Report, entry: RunEntry) -> Iterator[list[str]]:
    time = f"{entry.time.median:.6g}" if entry.time is not None else ""
    unit = "patient" if patients_of([entry.scores]) else report.task.case
    cost = [str(entry.cost.parameters or ""), str(entry.cost.macs or ""), time]
    teacher, alone = report.teacher(entry), report.alone(entry)
    for metric in report.metrics:
        for part in ("", *entry.scores.parts):
            value = entry.scores.value(metric.key, part)
            row = [entry.name, entry.label, entry.role, metric.key, part]
            row += [*_numbers(value), str(value.n)]
            row += _numbers(report.difference(entry, teacher, metric.key, part))
            compared = alone if alone is not None and report.has_learnt(alone, part) else None
            row += _numbers(report.difference(entry, compared, metric.key, part))
            yield [*row, *cost, unit]


def _numbers(value: Interval | None) -> list[str]:
    if value is None:
        return ["", "", ""]
    return [_number(value.mean), _number(value.low), _number(value.high)]


def _number(value: float) -> str:
    return f"{value:.6g}" if isfinite(value) else ""


def latex_text(report: Report) -> str:
    """The table of runs for a paper (packages booktabs): scores with intervals, difference to the teacher, size."""
    metrics, main = report.task.metrics, report.task.main
    head = ["Run", *(latex_escaped(metric.name) for metric in metrics)]
    head += [f"{latex_escaped(main.name)} $-$ teacher", "Parameters"]
    columns = "l" + "r" * (len(head) - 1)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _line(head), r"\midrule"]
    for entry in report.scored:
        cells = [latex_escaped(entry.label)]
        for metric in metrics:
            cells.append(_cell(entry.scores.value(metric.key), metric.decimals))
        difference = report.difference(entry, report.teacher(entry))
        cells.append(_cell(difference, main.decimals, sign="+"))
        cells.append(f"{entry.cost.parameters / 1e6:.2f} M" if entry.cost.parameters else "--")
        lines.append(_line(cells))
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(value: Interval | None, decimals: int, sign: str = "") -> str:
    if value is None or not isfinite(value.mean):
        return "--"
    mean, low, high = (f"${number:{sign}.{decimals}f}$" for number in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]" if isfinite(value.low) else mean


def latex_escaped(text: str) -> str:
    """Text for LaTeX."""
    return text.translate(_ESCAPES)
