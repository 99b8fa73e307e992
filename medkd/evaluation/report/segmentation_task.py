"""What the report of a segmentation data set has of its own."""

from __future__ import annotations

from html import escape

from medkd.evaluation.report import figures
from medkd.evaluation.report.data import Report, ReportTask
from medkd.evaluation.report.html import chart, dot, folded, section, table
from medkd.evaluation.report.page import failed, legend, over, part_table
from medkd.evaluation.report.segmentation_pictures import picture_section
from medkd.evaluation.report.segmentation_scores import FURTHER, METRICS, SegmentationScores
from medkd.evaluation.segmentation.results import definitions


def _sections(report: Report) -> list[str]:
    return [_structures(report), _failures(report)]


def _structures(report: Report) -> str:
    charts = [chart(figures.per_part(report, metric), f"{metric.name} per structure") for metric in METRICS]
    means = {entry.name: entry.scores.case_means() for entry in report.scored}
    charts.append(chart(figures.per_case(report, means, "mean Dice of each case"), "Dice of every case"))
    content = "".join(charts)
    if not content:
        return ""
    return section(
        "Structure by structure",
        f"Dots are means over cases, bars 95 % intervals{over(report)}.",
        f'{legend(report)}<div class="two">{content}</div>',
        folded("the same as tables", *(part_table(report, metric) for metric in METRICS)),
    )


def _failures(report: Report) -> str:
    """Structures missed and invented, per run."""
    if not report.scored:
        return ""
    shades = figures.colours(report.entries)
    names = report.scored[0].scores.parts
    rows = []
    for entry in report.scored:
        row = [f"{dot(shades[entry.name])}{escape(entry.label)}"]
        for index in range(len(names)):
            counts = entry.scores.summary.counts(index)
            row.append(f"{failed(counts['missed'], counts['invented'])}<small>{counts['scored']} found</small>")
        rows.append(row)
    return section(
        "What was missed or invented",
        "A structure that only one of prediction and reference holds counts as a failure in every mean, and is listed "
        "here: missed / invented.",
        table(["run", *(escape(name) for name in names)], rows),
    )


def _definitions(scores: SegmentationScores | None) -> dict[str, str]:
    texts = scores.summary.definitions() if scores is not None else definitions(None, "max")
    texts["paired difference"] = (
        "difference of the means over the shared cases, bootstrap interval, of which patients are drawn where they are "
        "known; p from Wilcoxon's signed-rank test of the cases' differences, or of the patients' means of them, in "
        "which a structure that one of two invents and the other leaves alone counts fully; coloured where the "
        "interval leaves 0 out and p < 0.05"
    )
    return texts


SEGMENTATION = ReportTask(
    read=SegmentationScores.read,
    progress=("validation_dice", "validation Dice (patches)"),
    metrics=METRICS,
    further=FURTHER,
    learnt=0.05,
    definitions=_definitions,
    sections=_sections,
    pictures=picture_section,
)
