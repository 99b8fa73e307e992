"""Scores as a plain-text table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from medkd.evaluation.statistics import Interval


def format_interval(interval: Interval, decimals: int) -> str:
    """``0.842 [0.821, 0.860]``; without bounds where there are none, ``–`` where there is no value."""
    if not isfinite(interval.mean):
        return "–"
    mean = f"{interval.mean:.{decimals}f}"
    if not isfinite(interval.low):
        return mean
    return f"{mean} [{interval.low:.{decimals}f}, {interval.high:.{decimals}f}]"


def counted_cases(cases: int, patients: int | None, case: str = "case") -> str:
    """``24 cases``; ``12 patients (24 cases)`` where patients are known."""
    counted = f"{cases} {case}s"
    return counted if patients is None else f"{patients} patients ({counted})"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], last: Sequence[str]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right, rules below the head and above the last
    row.
    """
    table = [head, *rows, last]
    columns = []
    for number, column in enumerate(zip(*table, strict=True)):
        width = max(map(len, column))
        justified = [cell.rjust(width) if number else cell.ljust(width) for cell in column]
        columns.append(justified)
    lines = ["  ".join(cells) for cells in zip(*columns, strict=True)]
    rule = "-" * len(lines[0])
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]
