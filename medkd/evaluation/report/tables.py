"""The report's numbers for a spreadsheet and for a paper: CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from math import isfinite

from medkd.evaluation.report.data import Report, RunEntry
from medkd.evaluation.statistics import Interval, PairedDifference

COLUMNS = (
    *("run", "label", "role", "metric", "part", "mean", "low", "high", "n"),
    *("minus_teacher", "minus_teacher_low", "minus_teacher_high"),
    *("minus_alone", "minus_alone_low", "minus_alone_high"),
    *("parameters", "multiply_adds", "seconds"),
)


def csv_text(report: Report) -> str:
    """One line per run, metric and structure or class (empty: all together); undefined numbers are empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in report.scored:
        writer.writerows(_rows(report, entry))
    return buffer.getvalue()


def _rows(report: Report, entry: RunEntry) -> Iterator[list[str]]:
    cost = [str(entry.cost.parameters or ""), str(entry.cost.macs or "")]
    cost.append(f"{entry.time.median:.6g}" if entry.time is not None else "")
    for metric in report.task.metrics:
        for part in ("", *entry.scores.parts):
            value = entry.scores.value(metric.key, part)
            teachers = report.difference(entry, report.teacher(entry), metric.key, part)
            alone = report.difference(entry, report.alone(entry), metric.key, part)
            start = [entry.name, entry.label, entry.role, metric.key, part]
            yield [*start, *_numbers(value), str(value.n), *_numbers(teachers), *_numbers(alone), *cost]


def _numbers(value: Interval | PairedDifference | None) -> list[str]:
    if value is None:
        return ["", "", ""]
    return [f"{number:.6g}" if isfinite(number) else "" for number in (value.mean, value.low, value.high)]


def latex_text(report: Report) -> str:
    """The table of runs for a paper (packages booktabs): scores with intervals, difference to the teacher, size."""
    metrics, main = report.task.metrics, report.task.main
    head = ["Run", *(metric.name for metric in metrics), f"{main.name} $-$ teacher", "Parameters"]
    lines = [r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}", r"\toprule"]
    lines += [" & ".join([head[0], *map(_escaped, head[1:-2]), *head[-2:]]) + r" \\", r"\midrule"]
    for entry in report.scored:
        cells = [_escaped(entry.label)]
        cells += [_cell(entry.scores.value(metric.key), metric.decimals) for metric in metrics]
        cells.append(_cell(report.difference(entry, report.teacher(entry)), main.decimals, sign="+"))
        cells.append(f"{entry.cost.parameters / 1e6:.2f} M" if entry.cost.parameters else "--")
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _cell(value: Interval | None, decimals: int, sign: str = "") -> str:
    if value is None or not isfinite(value.mean):
        return "--"
    mean = f"{value.mean:{sign}.{decimals}f}"
    if not isfinite(value.low):
        return f"${mean}$"
    return f"${mean}$ [${value.low:{sign}.{decimals}f}$, ${value.high:{sign}.{decimals}f}$]"


def _escaped(text: str) -> str:
    table = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    table |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(table.get(character, character) for character in text)
