"""``report.html`` of a detection data set: teacher, student alone and distilled students side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medkd.core.files import write_text
from medkd.evaluation.detection.metrics import RATES, rate_key
from medkd.evaluation.report import detection_page as parts
from medkd.evaluation.report import figures
from medkd.evaluation.report import segmentation_page as page
from medkd.evaluation.report.detection_data import DetectionEntry, comparisons, scored_entries
from medkd.evaluation.report.detection_pictures import radiograph_pictures
from medkd.evaluation.report.segmentation_data import RunEntry
from medkd.evaluation.statistics import Interval


def write_detection_report(path: Path, title: str, entries: Sequence[RunEntry], raw: Path) -> None:
    """Write a self-contained page: style and pictures are inside, there is no script.

    Args:
        path: where to write, atomically.
        title: heading, for instance the data set's name.
        entries: the runs (:func:`medkd.evaluation.report.detection_data.gather_detection`).
        raw: raw data set, for the pictures; they are left out where it is not there.

    Raises:
        DataError: two runs were scored with other classes, rules or reference boxes.
    """
    scored, compared = scored_entries(entries), comparisons(entries)
    shown, judge = radiograph_pictures(scored, raw)
    categories = scored[0].scores.categories if scored else ()
    content = page.document(
        title,
        parts.verdict(entries, compared),
        parts.cards(entries, compared),
        page.section(
            "Side by side",
            "On the validation images, with 95 % intervals; sensitivity is the share of the boxes that were found.",
            parts.overview(entries, compared),
        ),
        page.section(
            "Found against falsely found",
            "FROC: how many boxes a reader is shown at how many false marks per image; bars are 95 % intervals.",
            page.legend(entries) if scored else "",
            page.image(froc_figure(entries), "FROC curves", kind="wide"),
            parts.froc_table(entries),
        ),
        page.section(
            "Accuracy against cost",
            "Up is more accurate, left is cheaper.",
            page.image(figures.trade_off(entries, _ap50, "AP50", "image"), "trade-off", kind="wide"),
        ),
        _classes(entries, parts.class_table(entries, "AP50", compared)),
        page.section(
            "What it looks like",
            f"Chosen by {judge}; shown is what reaches the score at which a run has one false positive per image.",
            parts.gallery(shown, categories),
        )
        if shown
        else "",
        _training(entries),
        page.section("How the runs were made", "Enough to make them again.", page.settings(entries)),
        page.section(
            "How it was measured", "The definitions behind every number on this page.", parts.how_measured(entries)
        ),
    )
    write_text(path, content)


def froc_figure(entries: Sequence[RunEntry]) -> bytes | None:
    """Sensitivity against false positives per image, one staircase per run, with intervals at the fixed rates."""
    known = [e for e in scored_entries(entries) if "" in e.scores.curves and len(e.scores.curves[""].sensitivity)]
    if not known:
        return None
    figure, axes = figures.new_axes(6.4, 3.4)
    shades = figures.colours(entries)
    low, high = RATES[0] / 1.25, RATES[-1] * 1.25
    for i, entry in enumerate(known):
        curve, shade = entry.scores.curves[""], shades[entry.name]
        x, y = np.append(curve.false_positives, high), np.append(curve.sensitivity, curve.sensitivity[-1])
        axes.step(np.maximum(x, low), y, where="post", color=shade, lw=1.8)
        nudge = 1 + 0.03 * (i - (len(known) - 1) / 2)  # intervals of different runs side by side
        for rate in RATES:
            value = entry.scores.value(rate_key(rate))
            if np.isfinite(value.low):
                axes.plot(
                    [rate * nudge] * 2, [value.low, value.high], color=shade, lw=2.2, alpha=0.4, solid_capstyle="round"
                )
            axes.plot([rate * nudge], [value.mean], "o", color=shade, ms=4.5)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(RATES, ["1/8", "1/4", "1/2", *(f"{rate:g}" for rate in RATES[3:])])
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("false positives per image (log)")
    axes.set_ylabel("sensitivity")
    return figures.figure_png(figure)


def _ap50(entry: RunEntry) -> Interval | None:
    return entry.scores.value("AP50") if isinstance(entry, DetectionEntry) else None


def _classes(entries: Sequence[RunEntry], table: str) -> str:
    lead = "AP50 of the classes that have boxes; below, the rest of COCO's numbers, by size of the boxes and by detections per image."
    return page.section("Class by class", lead, table, parts.coco_table(entries)) if table else ""


def _training(entries: Sequence[RunEntry]) -> str:
    charts = [
        page.image(figures.curves(entries, "train_loss", "training loss (all terms)"), "training loss"),
        page.image(figures.curves(entries, "validation_score", "validation AP (while training)"), "validation AP"),
        *(page.image(figures.loss_terms(entry), f"loss terms of {entry.label}") for entry in entries),
    ]
    content = "".join(charts)
    lead = "Losses of different detectors and methods have different terms and are compared in shape, not in height."
    return page.section("Training", lead, f'<div class="two">{content}</div>' if content else "")
