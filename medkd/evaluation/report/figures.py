"""The charts of a report, as PNG bytes; matplotlib is imported on first use and needs no display."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from medkd.core.run_files import number_of
from medkd.core.timing import readable_seconds
from medkd.evaluation.report.data import Metric, Report, Role, RunEntry
from medkd.evaluation.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#1c2733", "#667585", "#dfe5ea"
TEACHER, ALONE = ("#22406b", "#6d8fc2"), ("#8b98a5", "#b8a27c", "#a9b8a0")
DISTILLED = ("#0b8f7a", "#d9782b", "#7a55c7", "#c9415c", "#2f7fd1", "#8a7a1f", "#b04fa0", "#4f7d3a")
_TONES: dict[Role, tuple[str, ...]] = {"teacher": TEACHER, "alone": ALONE, "distilled": DISTILLED}
_DPI = 170
WIDTH = 4.0  # inches: narrow, so that letters can be read where a phone is 310 pixels wide
_LETTERS = 9.0  # points
_MOST_TICKS = 4  # labels of a logarithmic axis


def colours(entries: Sequence[RunEntry]) -> dict[str, str]:
    """A colour per run: navy for teachers, grey for students alone, bright for distilled ones."""
    shades = {role: cycle(tones) for role, tones in _TONES.items()}
    found = {}
    for entry in entries:
        found[entry.name] = next(shades[entry.role])
    return found


def trade_off(report: Report, metric: Metric) -> bytes | None:
    """A score with its interval against measured time (else parameters); None where nothing has both."""
    known, costs, by_time = _costs(report, metric)
    if not known:
        return None
    figure, axes = new_axes(WIDTH, 2.9)
    shades = colours(report.entries)
    for position, (entry, cost) in enumerate(zip(known, costs, strict=True)):
        shade, value = shades[entry.name], entry.scores.value(metric.key)
        # runs of one network have the same cost up to noise: a small step apart keeps their intervals legible
        distances = np.abs(np.log(cost / np.array(costs[:position])))
        place = cost * (1 + 0.035 * np.count_nonzero(distances < 0.1))
        if np.isfinite(value.low):
            axes.plot([place, place], [value.low, value.high], color=shade, lw=2.2)
        axes.plot([place], [value.mean], "o", color=shade, ms=9)
    low, high = min(costs) / 1.6, max(costs) * 1.8
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    _plain_log(axes, low, high, readable_seconds if by_time else human)
    unit = report.timings.unit if report.timings is not None else report.task.case
    axes.set_xlabel(f"time of one {unit} (log)  ←  faster" if by_time else "parameters (log)  ←  smaller")
    axes.set_ylabel(metric.name)
    return figure_png(figure)


def _costs(report: Report, metric: Metric) -> tuple[list[RunEntry], list[float], bool]:
    """Runs with a score and a cost, the costs, and whether these are seconds (else parameters)."""
    scored = _with_score(report, metric)
    times = [entry.time.median for entry in scored if entry.time is not None]
    if scored and len(times) == len(scored):
        return scored, times, True
    sized, parameters = [], []
    for entry in scored:
        if entry.cost.parameters:
            sized.append(entry)
            parameters.append(float(entry.cost.parameters))
    return sized, parameters, False


def _with_score(report: Report, metric: Metric) -> list[RunEntry]:
    return [entry for entry in report.scored if np.isfinite(entry.scores.value(metric.key).mean)]


def per_part(report: Report, metric: Metric) -> bytes | None:
    """One row per structure or class and one for their mean, one dot with interval per run."""
    known = _with_score(report, metric)
    if not known:
        return None
    names = list(known[0].scores.parts)
    rows = [*names, ""] if len(names) > 1 else names
    row_height = max(0.34, 0.13 * len(known))
    figure, axes = new_axes(WIDTH, 0.75 + row_height * len(rows))
    shades = colours(report.entries)
    offsets = 0.72 * _spread_out(len(known))
    for entry, offset in zip(known, offsets, strict=True):
        for row, part in enumerate(rows):
            value = entry.scores.value(metric.key, part)
            _dot_with_interval(axes, value, row + offset, shades[entry.name])
    for row in range(1, len(rows), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=LINE, alpha=0.35, lw=0, zorder=0)
    axes.set_yticks(range(len(rows)), [wrapped(name or "mean") for name in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{metric.name}  →  better" if metric.more_is_better else f"{metric.name}  ←  better")
    axes.grid(axis="y", visible=False)
    return figure_png(figure)


def _spread_out(count: int) -> np.ndarray:
    """Places ``(count,)`` of things side by side, one apart over the whole, around 0."""
    return (np.arange(count) - (count - 1) / 2) / count


def _dot_with_interval(axes: Axes, value: Interval, y: float, shade: str) -> None:
    if np.isnan(value.mean):
        return
    if np.isfinite(value.low):
        axes.plot([value.low, value.high], [y, y], color=shade, lw=2.2, alpha=0.45, solid_capstyle="round")
    axes.plot([value.mean], [y], "o", color=shade, ms=5.5)


def per_case(report: Report, means: Mapping[str, np.ndarray], title: str) -> bytes | None:
    """Every case's score as a dot, with the median; ``means`` holds run → ``(cases,)``, NaN where there is none."""
    known = [entry for entry in report.scored if entry.name in means]
    if not known:
        return None
    figure, axes = new_axes(WIDTH, 0.75 + 0.44 * len(known))
    shades = colours(report.entries)
    for row, entry in enumerate(known):
        scores = means[entry.name]
        values = scores[np.isfinite(scores)]
        jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(values))
        axes.plot(values, row + jitter, "o", ms=4, color=shades[entry.name], alpha=0.5, mec="none")
        if len(values):
            median = float(np.median(values))
            axes.plot([median, median], [row - 0.32, row + 0.32], color=INK, lw=1.6)
    axes.set_yticks(range(len(known)), [wrapped(entry.label) for entry in known])
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlabel(f"{title}  →  better   (bar: median)")
    axes.grid(axis="y", visible=False)
    return figure_png(figure)


def wrapped(label: str, width: int = 24) -> str:
    """A label in lines short enough for an axis or a legend."""
    return "\n".join(textwrap.wrap(label, width, break_long_words=True)) or label


def curves(entries: Sequence[RunEntry], key: str, title: str) -> bytes | None:
    """One training curve per run of a value of the log; None where no run has any."""
    shades = colours(entries)
    drawn = {}
    for entry in entries:
        points = _points(entry.log, key)
        if len(points):
            drawn[entry.name] = points
    if not drawn:
        return None
    figure, axes = new_axes(WIDTH, 2.7)
    for name, points in drawn.items():
        epochs, values = points.T
        axes.plot(epochs, values, color=shades[name], lw=1.8)
    _epochs(axes, title)
    return figure_png(figure)


def loss_terms(entry: RunEntry) -> bytes | None:
    """The loss terms of one run on a logarithmic scale; None where there are fewer than two."""
    log = []
    names: dict[str, None] = {}
    for record in entry.log:
        terms = record.get("terms") or {}
        names |= dict.fromkeys(terms)
        log.append({**terms, "epoch": record["epoch"]})
    if len(names) < 2:
        return None
    figure, axes = new_axes(WIDTH, 2.7)
    shades = cycle((ALONE[0], *DISTILLED))
    for name, shade in zip(names, shades, strict=False):
        epochs, values = _points(log, name).T
        positive = values > 0
        if positive.any():
            axes.plot(epochs[positive], values[positive], color=shade, lw=1.8, label=wrapped(name))
    axes.set_yscale("log")
    axes.tick_params(which="minor", colors=MUTED, labelsize=_LETTERS, length=0)
    _epochs(axes, f"loss terms · {entry.label}")
    axes.legend(frameon=False, fontsize=8, labelcolor=MUTED)
    return figure_png(figure)


def _epochs(axes: Axes, title: str) -> None:
    axes.set_title(wrapped(title, 46), loc="left", fontsize=9.5, color=INK, fontweight="bold")
    axes.set_xlabel("epoch")
    _whole_numbers(axes)


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one chart in the report's style, that no window system and no global state knows of; sizes in
    inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=_LETTERS, length=0)
    axes.xaxis.label.set(color=MUTED, fontsize=_LETTERS)
    axes.yaxis.label.set(color=MUTED, fontsize=_LETTERS)
    axes.grid(color=MUTED, alpha=0.18, lw=0.8)  # of a middle tone, which is seen on a dark page, too
    axes.set_axisbelow(True)
    return figure, axes


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _plain_log(axes: Axes, low: float, high: float, text: Callable[[float], str]) -> None:
    """Label a logarithmic axis in plain numbers: at 1, 2 and 5 times powers of ten, or fewer where these would run into
    each other.
    """
    powers = 10.0 ** np.arange(-6, 13)
    ticks: list[float] = []
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        every = np.outer(powers, multiples).ravel()
        within = (low <= every) & (every <= high)
        ticks = every[within].tolist()
        if len(ticks) <= _MOST_TICKS:
            break
    axes.set_xticks(ticks, [text(tick) for tick in ticks])
    axes.minorticks_off()


def human(number: float | None) -> str:
    """``1.96 M``, ``12.3 G``; ``–`` for None."""
    if number is None:
        return "–"
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"


def _points(log: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """``(n, 2)``: epoch from 1 on, and value, where that is a finite number."""
    found = []
    for record in log:
        value = number_of(record.get(key))
        if value is not None:
            found.append((record["epoch"] + 1, value))
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def figure_png(figure: Figure) -> bytes:
    """Render a figure on a clear ground, grown to hold all of its labels; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", metadata={"Software": None}, facecolor="none", bbox_inches="tight", pad_inches=0.05
    )
    figure.clear()
    return buffer.getvalue()
