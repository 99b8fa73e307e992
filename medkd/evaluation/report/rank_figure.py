"""The critical-difference diagram: mean ranks on a line, and bars that join what cannot be told apart (Demšar, JMLR 7,
2006, figure 1).
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from numpy.typing import ArrayLike

from medkd.evaluation.ranking import CriticalDifference, case_table, critical_difference, why_not_ranked
from medkd.evaluation.report.data import Report
from medkd.evaluation.report.figures import INK, MUTED, figure_png, new_axes
from medkd.evaluation.report.html import chart, section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAR, _ROW, _FURTHER, _INCHES = 0.30, 0.64, 0.55, 0.30  # of a bar, of a label, of its further lines; inches of 1
_LONGEST = 24  # letters of a line of a label
_ACCENT = "#0b8f7a"


def rank_figure(found: CriticalDifference) -> Figure:
    """Draw the diagram; the best is on the left."""
    names = sorted(found.ranks, key=lambda name: (found.ranks[name], name))
    half = (len(names) + 1) // 2
    texts = {name: textwrap.wrap(f"{name}  {found.ranks[name]:.2f}", _LONGEST) for name in names}
    bars = 0.45 + _BAR * len(found.groups)
    sides = [_heights([texts[name] for name in side], bars) for side in (names[:half], names[: half - 1 : -1])]
    depth = max(side[-1] for side in sides)
    figure, axes = new_axes(5.2, _INCHES * (depth + 2.3))
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_ylim(depth + 0.2, -2.1)
    axes.set_xlim(0.9, len(names) + 0.1)
    _scale(axes, len(names), found.distance)
    for name, height in zip(names[:half], sides[0], strict=True):
        _label(axes, texts[name], found.ranks[name], height, 0.95)
    for name, height in zip(names[: half - 1 : -1], sides[1], strict=True):
        _label(axes, texts[name], found.ranks[name], height, len(names) + 0.05)
    for number, group in enumerate(found.groups):
        ranks = [found.ranks[name] for name in group]
        ends = min(ranks) - 0.03, max(ranks) + 0.03
        axes.plot(ends, [0.3 + _BAR * number] * 2, color=_ACCENT, lw=4.5, solid_capstyle="butt", gid="group")
    return figure


def _heights(texts: Sequence[Sequence[str]], top: float) -> list[float]:
    """Where labels stand below each other, by their lines."""
    found, edge = [], top - _ROW / 2
    for lines in texts:
        own = _ROW + _FURTHER * (len(lines) - 1)
        found.append(edge + own / 2)
        edge += own
    return found


def _scale(axes: Axes, count: int, distance: float) -> None:
    """The line of ranks, and above it the length of a critical difference."""
    axes.plot([1, count], [0, 0], color=INK, lw=1.2)
    for rank in range(1, count + 1):
        axes.plot([rank, rank], [0, -0.16], color=INK, lw=1.2)
        axes.text(rank, -0.28, str(rank), ha="center", va="bottom", fontsize=8.5, color=MUTED)
    end = 1 + distance
    axes.plot([1, end], [-1.35, -1.35], color=INK, lw=1.2)
    for place in (1, end):
        axes.plot([place, place], [-1.45, -1.25], color=INK, lw=1.2)
    axes.text(end, -1.35, f"  critical difference {distance:.2f}", ha="left", va="center", fontsize=8.5, color=MUTED)


def _label(axes: Axes, lines: Sequence[str], rank: float, height: float, edge: float) -> None:
    """A name at the edge, with a line to its rank."""
    left = edge < 1
    axes.plot([rank, rank, edge], [0, height, height], color=MUTED, lw=1.0)
    axes.plot([rank], [0], "o", color=INK, ms=4.5)
    axes.text(
        edge + (-0.04 if left else 0.04),
        height,
        "\n".join(lines),
        ha="right" if left else "left",
        va="center",
        fontsize=9,
        color=INK,
        linespacing=0.95,
        gid="name",
    )


def rank_picture(found: CriticalDifference, kind: Literal["png", "svg"]) -> bytes:
    """The diagram as a file that stands alone: on white, so that it can be read on any ground and on paper; the same
    diagram gives the same bytes.
    """
    import matplotlib

    buffer = io.BytesIO()
    figure = rank_figure(found)
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    with matplotlib.rc_context({"svg.hashsalt": "medkd"}):
        figure.savefig(buffer, format=kind, metadata=metadata, facecolor="white", bbox_inches="tight", pad_inches=0.12)
    figure.clear()
    return buffer.getvalue()


def caption(found: CriticalDifference, unit: str = "case") -> str:
    """What the diagram says, in a sentence; the unit is what was compared."""
    if found.p >= 0.05:
        told = "so none can be told from another, and all are joined"
    else:
        told = "bars join neighbours that Nemenyi's test cannot tell apart"
    return f"Mean ranks over {found.cases} {unit}s, 1 is best; Friedman's test: p = {found.p:.2g}, {told}."


def rank_section(report: Report) -> str:
    """The part of a report that ranks its runs; it says why where it cannot, and is empty for less than two runs."""
    if len(report.scored) < 2:
        return ""
    title = "Which runs can be told apart"
    table = case_table([entry.scores for entry in report.scored], report.task.case)
    scores: Mapping[str, ArrayLike] = {}
    if table is not None:
        scores = {entry.label: row for entry, row in zip(report.scored, table.values, strict=True)}
    groups, unit = (None, report.task.case) if table is None else (table.groups, table.unit)
    reason = why_not_ranked(scores, unit, groups)
    if reason:
        return section(title, f"No order is tested: {reason}.", " ")
    found = critical_difference(scores, groups)
    if found is None:
        return ""
    return section(
        title, caption(found, unit), chart(figure_png(rank_figure(found)), "critical-difference diagram", "wide")
    )
