"""The charts of a report, as PNG bytes; matplotlib is imported on first use and needs no display."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medkd.evaluation.report.segmentation_data import Role, RunEntry
from medkd.evaluation.segmentation.results import Metric
from medkd.evaluation.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#1c2733", "#667585", "#dfe5ea"
TEACHER, ALONE = ("#22406b", "#6d8fc2"), ("#8b98a5", "#b8a27c", "#a9b8a0")
DISTILLED = ("#0b8f7a", "#d9782b", "#7a55c7", "#c9415c", "#2f7fd1", "#8a7a1f", "#b04fa0", "#4f7d3a")
_DPI = 170
_MOST_TICKS = 4  # labels of a logarithmic axis

ValueOf = Callable[[RunEntry], Interval | None]


def colours(entries: Sequence[RunEntry]) -> dict[str, str]:
    """A colour per run: navy for teachers, grey for students alone, bright for distilled ones."""
    shades: dict[Role, tuple[str, ...]] = {"teacher": TEACHER, "alone": ALONE, "distilled": DISTILLED}
    found: dict[str, str] = {}
    for role, tones in shades.items():
        names = [e.name for e in entries if e.role == role]
        found |= {name: tones[i % len(tones)] for i, name in enumerate(names)}
    return found


def trade_off(
    entries: Sequence[RunEntry],
    value_of: ValueOf | None = None,
    name: str = "mean foreground Dice",
    unit: str = "patch",
) -> bytes | None:
    """A score with its interval against latency (else parameters); None where nothing has both.

    Args:
        entries: the runs.
        value_of: gives a run's score; its foreground Dice where None.
        name: of the score.
        unit: what the latency is measured on.
    """
    values = {e.name: value_of(e) if value_of else _dice(e) for e in entries}
    known = [(e, v) for e in entries if (v := values[e.name]) is not None and (e.cost.latency_ms or e.cost.parameters)]
    if not known:
        return None
    by_time = all(e.cost.latency_ms for e, _ in known)
    figure, axes = new_axes(6.4, 3.0)
    shades = colours(entries)
    costs = [float((e.cost.latency_ms if by_time else e.cost.parameters) or 1) for e, _ in known]
    for position, ((entry, value), cost) in enumerate(zip(known, costs, strict=True)):
        if np.isnan(value.mean):
            continue
        # runs of one network have the same cost up to noise: a small step apart keeps their intervals legible
        nudge = 1.0 + 0.035 * (sum(abs(np.log(cost / c)) < 0.1 for c in costs[:position]))
        bars = [[value.mean - value.low], [value.high - value.mean]] if value.n > 1 else None
        axes.errorbar(
            cost * nudge,
            value.mean,
            yerr=bars,
            fmt="o",
            color=shades[entry.name],
            ms=9,
            capsize=0,
            lw=2.2,
            label=entry.label,
        )
    axes.set_xscale("log")
    low, high = min(costs), max(costs)
    axes.set_xlim(low / 1.6, high * 1.8)
    _plain_log(axes, low / 1.6, high * 1.8, "{:g} ms" if by_time else None)
    axes.set_xlabel(f"time of one {unit} (log)  ←  faster" if by_time else "parameters (log)  ←  smaller")
    axes.set_ylabel(name)
    axes.legend(
        frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), handletextpad=0.4, fontsize=8.5, labelspacing=0.8
    )
    return figure_png(figure)


def _dice(entry: RunEntry) -> Interval | None:
    return entry.summary.interval("Dice") if entry.summary is not None else None


def per_structure(entries: Sequence[RunEntry], metric: Metric) -> bytes | None:
    """One row per structure, one dot with interval per run."""
    known = [e for e in entries if e.summary is not None and np.isfinite(e.summary.interval(metric).mean)]
    if not known or known[0].summary is None:
        return None
    names = [name for name, _ in known[0].summary.structures]
    rows = len(names) + (len(names) > 1)
    step = 0.72 / max(len(known), 1)
    figure, axes = new_axes(4.6, 0.75 + rows * max(0.34, 0.13 * len(known)))
    shades = colours(entries)
    for i, entry in enumerate(known):
        for row in range(rows):
            value = entry.summary.interval(metric, row if row < len(names) else None) if entry.summary else None
            if value is None or np.isnan(value.mean):
                continue
            y = row + (i - (len(known) - 1) / 2) * step
            if value.n > 1:
                axes.plot(
                    [value.low, value.high],
                    [y, y],
                    color=shades[entry.name],
                    lw=2.2,
                    alpha=0.45,
                    solid_capstyle="round",
                )
            axes.plot([value.mean], [y], "o", color=shades[entry.name], ms=5.5)
    for row in range(1, rows, 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f4f7f9", zorder=0)
    axes.set_yticks(range(rows), [*names, "foreground"][:rows])
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlabel({"HD95": "HD95 in mm  ←  better", "NSD": "NSD  →  better"}.get(metric, f"{metric}  →  better"))
    axes.grid(axis="y", visible=False)
    return figure_png(figure)


def per_case(entries: Sequence[RunEntry]) -> bytes | None:
    """Every case's mean Dice as a dot, with the median."""
    known = [e for e in entries if e.summary is not None]
    if not known:
        return None
    figure, axes = new_axes(4.6, 0.75 + 0.44 * len(known))
    shades = colours(entries)
    for row, entry in enumerate(known):
        values = case_means(entry)
        values = values[np.isfinite(values)]
        jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(values))
        axes.plot(values, row + jitter, "o", ms=4, color=shades[entry.name], alpha=0.5, mec="none")
        if len(values):
            axes.plot([np.median(values)] * 2, [row - 0.32, row + 0.32], color=INK, lw=1.6)
    axes.set_yticks(range(len(known)), [e.label for e in known])
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlabel("mean Dice of each case  →  better   (bar: median)")
    axes.grid(axis="y", visible=False)
    return figure_png(figure)


def case_means(entry: RunEntry) -> np.ndarray:
    """Mean Dice over the structures of each case; NaN where all are absent."""
    table = entry.summary.table("Dice") if entry.summary else np.zeros((0, 1))
    known = np.isfinite(table)
    total = np.where(known, table, 0).sum(axis=1)
    return np.where(known.any(axis=1), total / np.maximum(known.sum(axis=1), 1), np.nan)


def curves(entries: Sequence[RunEntry], key: str, title: str) -> bytes | None:
    """One training curve per run of a value of the log."""
    figure, axes = new_axes(4.6, 2.7)
    shades, drawn = colours(entries), 0
    for entry in entries:
        points = _points(entry.log, lambda r: r.get(key))
        if len(points):
            axes.plot(points[:, 0], points[:, 1], color=shades[entry.name], lw=1.8, label=entry.label)
            drawn += 1
    axes.set_title(title, loc="left", fontsize=9.5, color=INK, fontweight="bold")
    axes.set_xlabel("epoch")
    _whole_numbers(axes)
    if drawn > 1:
        axes.legend(frameon=False, fontsize=7.5)
    return figure_png(figure) if drawn else None


def loss_terms(entry: RunEntry) -> bytes | None:
    """The loss terms of one run on a logarithmic scale; None where there are fewer than two."""
    names = list(dict.fromkeys(name for record in entry.log for name in (record.get("terms") or {})))
    if len(names) < 2:
        return None
    figure, axes = new_axes(4.6, 2.7)
    for i, name in enumerate(names):
        points = _points(entry.log, lambda r, name=name: (r.get("terms") or {}).get(name))  # type: ignore[misc]
        positive = points[points[:, 1] > 0] if len(points) else points
        if len(positive):
            axes.plot(positive[:, 0], positive[:, 1], color=(INK, *DISTILLED)[i % 9], lw=1.8, label=name)
    axes.set_yscale("log")
    axes.tick_params(which="minor", length=0)
    axes.set_title(f"loss terms · {entry.label}", loc="left", fontsize=9.5, color=INK, fontweight="bold")
    axes.set_xlabel("epoch")
    _whole_numbers(axes)
    axes.legend(frameon=False, fontsize=7.5)
    return figure_png(figure)


def new_figure(
    width: float, height: float, columns: int = 1, *, padding: float = 0.04, gap: float = 0.02
) -> tuple[Figure, Any]:
    """A figure that no window system and no global state knows of, and its axes in a row; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=padding, h_pad=padding, wspace=gap)
    figure = Figure(figsize=(width, height), dpi=_DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one chart in the report's style; sizes in inches."""
    figure, grid = new_figure(width, height)
    axes: Axes = grid[0]
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side == "bottom")
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=8.5, length=0)
    axes.xaxis.label.set(color=MUTED, fontsize=8.5)
    axes.yaxis.label.set(color=MUTED, fontsize=8.5)
    axes.grid(color=LINE, lw=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _plain_log(axes: Axes, low: float, high: float, text: str | None) -> None:
    """Label a logarithmic axis in plain numbers: at 1, 2 and 5 times powers of ten, or fewer where these would run into
    each other.
    """
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**e for e in range(-3, 13) for m in multiples if low <= m * 10.0**e <= high]
        if len(ticks) <= _MOST_TICKS:
            break
    axes.set_xticks(ticks, [text.format(t) if text else human(t) for t in ticks])
    axes.minorticks_off()


def human(number: float | None) -> str:
    """``1.96 M``, ``12.3 G``; ``–`` for None."""
    if number is None:
        return "–"
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"


def _points(log: Sequence[Mapping[str, Any]], value: Any) -> np.ndarray:
    found = [(r["epoch"] + 1, value(r)) for r in log]
    return np.array(
        [(e, v) for e, v in found if isinstance(v, (int, float)) and np.isfinite(v)], dtype=np.float64
    ).reshape(-1, 2)


def figure_png(figure: Figure, **options: Any) -> bytes:
    """Render a figure; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, **options)
    figure.clear()
    return buffer.getvalue()
