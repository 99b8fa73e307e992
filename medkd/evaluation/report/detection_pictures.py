"""Validation images of a detection data set with the boxes that were drawn and those that were found, run by run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from medkd.core.dataset import DatasetDescription, detection_cases
from medkd.core.errors import MedkdError
from medkd.evaluation.detection.drawing import TRUTH, DrawnBox, colour_of, draw_boxes
from medkd.evaluation.report.data import Report, RunEntry
from medkd.evaluation.report.detection_scores import DetectionScores
from medkd.evaluation.report.figures import figure_png, new_figure, wrapped
from medkd.evaluation.report.html import image, section
from medkd.evaluation.report.pictures import GROUND, judge_of, shown_beside
from medkd.io.radiographs import read_radiograph, to_eight_bit

_PANEL = 2.6  # inches
_LARGEST = 440  # pixels of a panel's long side, as many as the figure has, so that the tags stay legible
_MOST = 10  # boxes per panel
_RUNS = 4


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RadiographPicture:
    """A picture of one image.

    Attributes:
        rank: why it is shown, for example ``worst``.
        case: its id.
        counts: label of each shown run → boxes found, missed, and false detections.
        png: the picture: one panel per run.
    """

    rank: str
    case: str
    counts: dict[str, tuple[int, int, int]]
    png: bytes


def picture_section(report: Report) -> str:
    """The part of the page with the images; nothing where they are not there any more."""
    shown, judge = radiograph_pictures(report)
    if not shown:
        return ""
    swatches = ['<span><i class="ref"></i>drawn by people</span>']
    for index, name in enumerate(report.scored[0].scores.summary.categories):
        swatches.append(f'<span><i style="border-color:{colour_of(index)}"></i>{escape(name)}, found</span>')
    drawn = []
    for picture in shown:
        counts = []
        for label, (true, missed, false) in picture.counts.items():
            counts.append(f"{escape(label)}: {true} found, {missed} missed, {false} false")
        caption = f"<strong>{picture.rank.capitalize()}</strong> · {escape(picture.case)} · {' · '.join(counts)}"
        drawn.append(image(picture.png, f"{picture.rank} image {picture.case}", caption, "picture"))
    return section(
        "What it looks like",
        f"Chosen by {judge}; shown is what reaches the score at which a run has one false positive per image.",
        f'<div class="legend">{"".join(swatches)}</div>',
        *drawn,
    )


def radiograph_pictures(report: Report) -> tuple[list[RadiographPicture], str]:
    """Pictures of the best, the median and the worst image with boxes, and of the clearest false alarm in an image
    without, ranked by the first distilled run (else the first).

    Returns:
        The pictures, worst first, and the label of the run that ranked the images; none where the raw data set is not
        there any more.
    """
    judge, raw = judge_of(report.scored), report.raw
    if judge is None or raw is None or not (raw / "dataset.json").exists():
        return [], ""
    shown = shown_beside(report.scored, judge, _RUNS)
    files = {}
    for found in detection_cases(raw, DatasetDescription.load(raw / "dataset.json")):
        files[found.case] = found.images[0]
    pictures = []
    for rank, case in ranked_images(judge.scores):
        runs = [entry for entry in shown if case in entry.scores.summary.truths]
        try:
            pixels = to_eight_bit(read_radiograph(files[case]).pixels)[0]
        except (MedkdError, KeyError) as error:  # a file that went missing since the scoring must not cost the report
            _log.warning("Without a picture of %s: %s", case, error)
            continue
        counts = {entry.label: entry.scores.balance(case) for entry in runs}
        pictures.append(RadiographPicture(rank, case, counts, _draw(pixels, case, runs)))
    return pictures, judge.label


def ranked_images(judge: DetectionScores) -> list[tuple[str, str]]:
    """(rank, case) of the images to show, each case once.

    Images with boxes are ordered by ``2 TP / (2 TP + FP + FN)`` at one false positive per image, then by the highest
    score of a false detection; images without, by the highest score.
    """

    def quality(case: str) -> tuple[float, float]:
        true, missed, false = judge.balance(case)
        return 2 * true / (2 * true + false + missed), -float(judge.boxes(case).scores[:1].sum()) * (false > 0)

    positive = sorted((c for c, t in judge.summary.truths.items() if len(t)), key=lambda c: (quality(c), c))
    alarms = [c for c, t in judge.summary.truths.items() if not len(t) and len(judge.boxes(c, judge.cut))]
    found: dict[str, str] = {}
    if positive:
        for rank, case in (("worst", positive[0]), ("best", positive[-1]), ("median", positive[len(positive) // 2])):
            found.setdefault(case, rank)
    if alarms:
        found[max(alarms, key=lambda c: float(judge.boxes(c).scores.max()))] = "false alarm"
    places = ("worst", "median", "best", "false alarm")
    return sorted(((rank, case) for case, rank in found.items()), key=lambda entry: places.index(entry[0]))


def _draw(pixels: np.ndarray, case: str, runs: Sequence[RunEntry]) -> bytes:
    height, width = pixels.shape[:2]
    shape = min(max(height / width, 0.6), 1.6)
    figure, panels = new_figure(_PANEL * len(runs), _PANEL * shape + 0.2, len(runs), padding=0.06, gap=0.0)
    for axes, entry in zip(panels, runs, strict=True):
        axes.imshow(np.asarray(draw_boxes(pixels, _boxes(entry.scores, case), _LARGEST)))
        axes.set_title(wrapped(entry.label, 32), fontsize=8.5, color="#e8eef3", pad=4)
        axes.set_axis_off()
    return figure_png(figure, facecolor=GROUND)


def _boxes(scores: DetectionScores, case: str) -> list[DrawnBox]:
    """What was found, on top of what was drawn."""
    found, truth, names = scores.boxes(case, scores.cut), scores.summary.truths[case], scores.found.categories
    first = found.only(np.arange(min(len(found), _MOST)))
    boxes = []
    for box, kind, score in zip(first.boxes.tolist(), first.classes, first.scores, strict=True):
        boxes.append(DrawnBox(tuple(box), f"{names[kind]} {score:.2f}", colour_of(int(kind))))
    return boxes + [DrawnBox(tuple(box), "", TRUTH) for box in truth.boxes.tolist()]
