"""A recipe's table for the terminal, Markdown, a spreadsheet and a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

from medkd.evaluation.report.html import without_folders
from medkd.evaluation.report.tables import latex_escaped
from medkd.evaluation.statistics import Interval
from medkd.evaluation.table import format_interval
from medkd.reproduction.rows import Results, Row

_UNDECIDED = "="
_ANSWERS = {"yes": "yes", "no": "no", "open": "open", "nothing": "not learnt"}


def head(results: Results) -> list[str]:
    """Titles of the columns."""
    names = [metric.name for metric in results.metrics]
    main = names[0] if names else "score"
    return [
        *("teacher", "student", "method", "runs"),
        *names,
        f"{main} − alone",
        "p (Holm)",
        f"{main} − teacher",
        f"replaces it (margin {results.margin:g})",
        "published",
    ]


def cells(results: Results, row: Row) -> list[str]:
    """A row as text; ``–`` where nothing is known yet, ``=`` before a difference that cannot be told from none."""
    found = [_or_dash(row.teacher), _or_dash(row.student), _or_dash(row.method), f"{row.done}/{row.total}"]
    for metric in results.metrics:
        value = row.values.get(metric.key)
        found.append(_or_dash(None if value is None else format_interval(value, metric.decimals)))
    decimals = results.metrics[0].decimals if results.metrics else 3
    mark = f"{_UNDECIDED} " if row.told_apart is False else ""
    found.append(mark + _signed(row.to_alone, decimals, row.of_alone))
    found.append(f"{row.p:.3g}" if isfinite(row.p) else "–")
    found.append(_signed(row.to_teacher, decimals, row.of_teacher))
    answers = {**_ANSWERS, "few": f"too few {results.unit}s"}
    found.append(_or_dash(answers.get(row.replaces or "")))
    found.append(_or_dash(_all_published(row)))
    return found


def _or_dash(text: str | None) -> str:
    return text or "–"


def _signed(interval: Interval | None, decimals: int, cases: int) -> str:
    """A difference, and over how many of the cases (or patients) of its rows it is, where not over all."""
    if interval is None or not isfinite(interval.mean):
        return "–"
    text = f"{interval.mean:+.{decimals}f}"
    if isfinite(interval.low):
        text += f" [{interval.low:+.{decimals}f}, {interval.high:+.{decimals}f}]"
    return f"{text} ({interval.n} of {cases})" if interval.n < cases else text


def _all_published(row: Row) -> str:
    return "; ".join(_published(entry.scores) for entry in row.published)


def _published(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in scores.items())


def text(results: Results) -> str:
    """Aligned columns, with notes below."""
    rows = [head(results), *(cells(results, row) for row in results.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join([results.title, "", *lines, *notes(results)]) + "\n"


def markdown(results: Results) -> str:
    """A table of GitHub's Markdown, with notes below."""
    rows = [head(results), *(cells(results, row) for row in results.rows)]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join([f"# {results.title}", "", *lines, "", *(f"- {note}" for note in notes(results) if note)]) + "\n"


def notes(results: Results) -> list[str]:
    """What the table cannot say in its cells."""
    lines = ["", *_about_chance(results), *_about_others(results)]
    for student in results.ranks:
        lines += _ranking(results, student)
    lines += [f"no ranks are tested for {student}: {reason}" for student, reason in results.unranked.items()]
    if results.source:
        lines.append(f"published: {results.source}")
    if results.data:
        lines.append(f"data: {results.data}")
    lines += results.prepared
    for row in results.rows:
        lines += _about_row(results, row)
    return lines


def _about_row(results: Results, row: Row) -> list[str]:
    """What became of its runs and searches."""
    lines = []
    if row.uneven:
        lines.append(
            f"seeds of {row.student} {row.way} have scores of other {results.unit}s each, as runs are missing: its "
            "mean is that of their means, and differences are over those that all have"
        )
    lines += [f"searched: {found}" for found in row.tuned]
    lines += [f"failed: {reason}" for reason in row.failed]
    lines += [f"warned: {text}" for text in row.warned]
    return lines + [f"due again, and not counted: {reason}" for reason in row.outdated]


def _about_chance(results: Results) -> list[str]:
    """What marks a difference that is none, and what intervals and tests are over where it is not cases."""
    lines = []
    if any(row.told_apart is False for row in results.rows):
        lines.append(
            f"{_UNDECIDED}  cannot be told from the student alone (95 % interval, and p after Holm's correction)"
        )
    if results.counted:
        lines.append(f"intervals, p and ranks are over patients: {results.counted}")
    return lines


def _about_others(results: Results) -> list[str]:
    """With which rows others are compared, where that is not plain."""
    lines = []
    for student in dict.fromkeys(row.student for row in results.rows if row.alone):
        mine = [row for row in results.rows if row.student == student]
        lines += [*_alone_of(results, student, mine), *_budgets(student, mine)]
    return lines + _judges(results)


def _judges(results: Results) -> list[str]:
    """With which of several teachers students alone are compared."""
    if results.judges:
        return [f"students alone are compared with no teacher, as there are several: {', '.join(results.judges)}"]
    if sum(row.kind == "teacher" for row in results.rows) < 2:
        return []
    judges = dict.fromkeys(row.judged_by for row in results.rows if row.kind == "alone" and row.judged_by)
    return [f"students alone are compared with the teacher {name}" for name in judges]


def _alone_of(results: Results, student: str | None, rows: Sequence[Row]) -> list[str]:
    """Which of several rows of a student alone its others are compared with."""
    if sum(row.kind == "alone" for row in rows) < 2:
        return []
    ways: dict[str, list[str]] = {}
    for row in rows:
        if row.alone is not None:
            ways.setdefault(row.alone, []).append(row.way)
    start = f"{results.metrics[0].name} − alone, of {student}: to the row"
    return [f"{start} {alone} for {', '.join(names)}" for alone, names in ways.items()]


def _budgets(student: str | None, rows: Sequence[Row]) -> list[str]:
    """Which rows are compared with one of another budget."""
    lines = []
    for row in rows:
        if row.budget:
            lines.append(f"{student} {row.way} is compared with {row.alone}, which has another budget: {row.budget}")
    return lines


def _ranking(results: Results, student: str) -> list[str]:
    order = []
    for rank in results.ranks[student]:
        order.append(f"{rank.place} {rank.name} ({rank.interval.low:.0f}–{rank.interval.high:.0f})")
    most = max(row.values[results.metrics[0].key].n for row in results.rows if row.student == student and row.scores)
    shared = results.ranks[student][0].interval.n if order else 0
    over = (
        f"the {shared} {results.unit}s of {most} that all of its rows have"
        if shared < most
        else f"{shared} {results.unit}s"
    )
    said = f"order for {student} over {over}, with 95 % of the bootstrap samples of the {results.unit}s"
    lines = [f"{said}: {', '.join(order)}"]
    found = results.differences.get(student)
    if found is not None:
        groups = "; ".join(" = ".join(group) for group in found.groups) or "none"
        lines.append(
            f"mean ranks for {student}: Friedman p {found.p:.2g}, critical difference {found.distance:.2f}, not told "
            f"apart: {groups}"
        )
    return lines


def csv_text(results: Results) -> str:
    """A line per row, metric and bound; undefined numbers are empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    keys = [metric.key for metric in results.metrics]
    bounded = [f"{name}{suffix}" for name in (*keys, *_COMPARED) for suffix in ("", "_low", "_high")]
    writer.writerow(["teacher", "student", "method", "runs", "of", *bounded, *_SAID])
    for row in results.rows:
        writer.writerow(_csv_row(row, keys))
    return buffer.getvalue()


_COMPARED = ("minus_alone", "minus_teacher")
_SAID = ("p_holm", "replaces_teacher", "searched", "published")


def _csv_row(row: Row, keys: Sequence[str]) -> list[str]:
    names = [row.teacher or "", row.student or "", row.method or "", str(row.done), str(row.total)]
    numbers: list[str] = []
    for interval in (*(row.values.get(key) for key in keys), row.to_alone, row.to_teacher):
        numbers += _numbers(interval)
    said = f"{row.p:.6g}" if isfinite(row.p) else ""
    return [*names, *numbers, said, row.replaces or "", "; ".join(row.tuned), _all_published(row)]


def _numbers(interval: Interval | None) -> list[str]:
    if interval is None:
        return ["", "", ""]
    values = (interval.mean, interval.low, interval.high)
    return [f"{value:.6g}" if isfinite(value) else "" for value in values]


def latex(results: Results) -> str:
    """For a paper (package booktabs); what the cells cannot say follows as comments."""
    titles = head(results)
    lines = [rf"\begin{{tabular}}{{{'l' * len(titles)}}}", r"\toprule", _latex_line(titles), r"\midrule"]
    lines += [_latex_line(cells(results, row)) for row in results.rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [f"% {' '.join(note.split())}" for note in notes(results) if note]
    return "\n".join(lines) + "\n"


def _latex_line(row: Sequence[str]) -> str:
    plain = [latex_escaped(cell).replace("−", "$-$").replace("–", "--") for cell in row]
    return " & ".join(plain) + r" \\"


def json_table(results: Results) -> dict[str, Any]:
    """The table for other programs; no names of folders."""
    ranks = {}
    for student, order in results.ranks.items():
        ranks[student] = [{"way": rank.name, "place": rank.place, "n": rank.interval.n} for rank in order]
    return {
        "title": results.title,
        "source": results.source,
        "margin": results.margin,
        "data": results.data,
        "prepared": [without_folders(text) for text in results.prepared],
        "ranks": ranks,
        "rows": json_rows(results),
    }


def json_rows(results: Results) -> list[dict[str, Any]]:
    """The rows for other programs; no names of folders."""
    found = []
    for row in results.rows:
        entry: dict[str, Any] = {"teacher": row.teacher, "student": row.student, "method": row.method}
        entry |= {"runs": row.done, "of": row.total}
        for key, value in row.values.items():
            entry[key] = _plain(value)
        entry["minus_alone"], entry["minus_teacher"] = _plain(row.to_alone), _plain(row.to_teacher)
        entry["compared_with"] = {"alone": row.alone, "another_budget": row.budget, "teacher": row.judged_by}
        entry["p_holm"] = row.p if isfinite(row.p) else None
        entry["replaces_teacher"] = row.replaces
        if row.tuned:
            entry["searched"] = list(row.tuned)
        if results.counted:
            entry["unit"] = results.unit
        entry["published"] = [dict(published.scores) for published in row.published]
        for name in ("failed", "warned", "outdated"):
            entry |= {name: [without_folders(text) for text in getattr(row, name)]} if getattr(row, name) else {}
        found.append(entry)
    return found


def _plain(interval: Interval | None) -> dict[str, float | int | None] | None:
    if interval is None:
        return None
    low, high = interval.low, interval.high
    return {
        "mean": round(interval.mean, 6) if isfinite(interval.mean) else None,
        "low": round(low, 6) if isfinite(low) else None,
        "high": round(high, 6) if isfinite(high) else None,
        "n": interval.n,
    }


WRITERS: Mapping[str, Callable[[Results], str]] = {
    "table.txt": text,
    "table.md": markdown,
    "table.csv": csv_text,
    "table.tex": latex,
}
"""File → what writes it."""
