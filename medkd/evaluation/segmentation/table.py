"""A summary as a plain-text table for the terminal."""

from __future__ import annotations

from medkd.evaluation.segmentation.results import METRICS, Metric, Summary
from medkd.evaluation.statistics import Interval

UNITS: dict[Metric, str] = {"Dice": "", "IoU": "", "HD95": " mm", "NSD": ""}


def format_interval(interval: Interval, digits: int) -> str:
    """``0.842 [0.821, 0.860]``; without bounds where there are none, ``–`` where there is no value."""
    if interval.mean != interval.mean:
        return "–"
    bounds = "" if interval.low != interval.low else f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
    return f"{interval.mean:.{digits}f}{bounds}"


def digits(metric: Metric) -> int:
    """Decimals that are worth showing."""
    return 2 if metric == "HD95" else 3


def summary_text(summary: Summary, metrics: tuple[Metric, ...] = METRICS) -> str:
    """One line per structure and one for the foreground mean: mean [95 % interval] of each metric, missed, invented,
    absent.
    """
    head = ["structure", *(f"{m}{UNITS[m] and ' mm'}" for m in metrics), "missed", "invented", "absent"]
    rows: list[list[str]] = [head]
    entries: list[tuple[str, int | None]] = [(name, i) for i, (name, _) in enumerate(summary.structures)]
    for name, index in [*entries, ("foreground mean", None)]:
        counts = summary.counts(index)
        scores = [format_interval(summary.interval(m, index), digits(m)) for m in metrics]
        rows.append([name, *scores, *(str(counts[s]) for s in ("missed", "invented", "absent"))])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "-" * len(lines[0])
    note = f"{len(summary.cases)} cases; mean [95 % interval over cases]"
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], note])
