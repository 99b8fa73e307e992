"""What the report of a detection data set has of its own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from medkd.evaluation.detection.metrics import RATES, rate_key
from medkd.evaluation.detection.results import Rules, definitions
from medkd.evaluation.report import figures
from medkd.evaluation.report.data import Report, ReportTask, RunEntry
from medkd.evaluation.report.detection_pictures import picture_section
from medkd.evaluation.report.detection_scores import METRICS, DetectionScores
from medkd.evaluation.report.html import chart, dot, interval, number, section, table
from medkd.evaluation.report.page import legend, part_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AP50 = METRICS[1]
_RATE_NAMES = ("1/8", "1/4", "1/2", "1", "2", "4", "8")


def _sections(report: Report) -> list[str]:
    return [
        section(
            "Found against falsely found",
            "FROC: how many boxes a reader is shown at how many false marks per image; bars are 95 % intervals.",
            legend(report),
            chart(froc_figure(report), "FROC curves", kind="large"),
            _rate_table(report),
        )
        if report.scored
        else "",
        section(
            "Class by class",
            "AP50 of the classes that have boxes; below, the rest of COCO's numbers, by size of the boxes and by "
            "detections per image.",
            part_table(report, _AP50),
            _coco_table(report),
        ),
    ]


def froc_figure(report: Report) -> bytes | None:
    """Sensitivity against false positives per image, one staircase per run, with intervals at the fixed rates."""
    known = []
    for entry in report.scored:
        curve = entry.scores.summary.curves.get("")
        if curve is not None and len(curve.sensitivity):
            known.append((entry, curve))
    if not known:
        return None
    figure, axes = figures.new_axes(figures.WIDTH, 2.8)
    shades = figures.colours(report.entries)
    low, high = RATES[0] / 1.25, RATES[-1] * 1.25
    for place, (entry, curve) in enumerate(known):
        shade = shades[entry.name]
        x = np.append(curve.false_positives, high)
        y = np.append(curve.sensitivity, curve.sensitivity[-1])
        axes.step(np.maximum(x, low), y, where="post", color=shade, lw=1.8)
        nudge = 1 + 0.03 * (place - (len(known) - 1) / 2)  # intervals of different runs side by side
        _rates(axes, entry, nudge, shade)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(RATES, _RATE_NAMES)
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("false positives per image (log)")
    axes.set_ylabel("sensitivity")
    return figures.figure_png(figure)


def _rates(axes: Axes, entry: RunEntry, nudge: float, shade: str) -> None:
    """Dots with intervals at the fixed rates, a factor to the side."""
    for rate in RATES:
        value = entry.scores.value(rate_key(rate))
        place = rate * nudge
        if np.isfinite(value.low):
            axes.plot([place, place], [value.low, value.high], color=shade, lw=2.2, alpha=0.4)
        axes.plot([place], [value.mean], "o", color=shade, ms=4.5)


def _rate_table(report: Report) -> str:
    """Sensitivity at every rate of false positives, one row per run."""
    rows = []
    for entry in report.scored:
        row = [_named(report, entry)]
        for rate in RATES:
            row.append(interval(entry.scores.value(rate_key(rate)), 3))
        rows.append(row)
    return table(["false positives per image", *(f"{rate:g}" for rate in RATES)], rows)


def _coco_table(report: Report) -> str:
    """The rest of COCO's numbers, one row per run."""
    if not report.scored:
        return ""
    every = report.scored[0].scores.summary.metrics()
    metrics = [name for name in every if name.startswith(("AP75", "AP ", "AR"))]
    rows = []
    for entry in report.scored:
        row = [_named(report, entry)]
        for metric in metrics:
            row.append(number(entry.scores.value(metric).mean))
        rows.append(row)
    return table(["run", *map(escape, metrics)], rows)


def _named(report: Report, entry: RunEntry) -> str:
    shade = figures.colours(report.entries)[entry.name]
    return f"{dot(shade)}{escape(entry.label)}"


def _definitions(scores: DetectionScores | None) -> dict[str, str]:
    texts = definitions(scores.summary.rules if scores is not None else Rules(()))
    texts["paired difference"] = (
        "on the same images, both counted on the same bootstrap samples; coloured where the interval leaves 0 out and "
        "p < 0.05 (p: twice the smaller share of the samples on either side of zero)"
    )
    texts["final weights"] = "the last epoch's weights are judged, since the best ones were chosen on these very images"
    skipped: Sequence[str] = scores.summary.skipped if scores is not None else ()
    if skipped:
        texts["classes without boxes"] = ", ".join(skipped)
    return texts


DETECTION = ReportTask(
    part="class",
    case="image",
    metrics=METRICS,
    learnt=0.01,
    read=DetectionScores.read,
    progress=("validation_score", "validation AP (while training)"),
    definitions=_definitions,
    sections=_sections,
    pictures=picture_section,
)
