"""Validation images of a detection data set with the boxes that were drawn and those that were found, run by run."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from PIL import Image

from medkd.core.dataset import DatasetDescription, detection_cases
from medkd.core.errors import MedkdError
from medkd.evaluation.detection.drawing import TRUTH, DrawnBox, colour_of, draw_boxes
from medkd.evaluation.report.data import Report
from medkd.evaluation.report.detection_scores import DetectionScores
from medkd.evaluation.report.html import image, section
from medkd.evaluation.report.pictures import judge_of, shown_beside
from medkd.io.radiographs import read_radiograph, scaling_of, to_eight_bit

_LARGEST = 440  # pixels of a panel's long side, about as many as the page shows, so that the tags stay legible
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
        panels: label of each shown run → PNG of the image with its boxes and the reference's.
    """

    rank: str
    case: str
    counts: Mapping[str, tuple[int, int, int]]
    panels: Mapping[str, bytes]


def picture_section(report: Report) -> str:
    """The part of the page with the images; nothing where they are not there any more."""
    shown, judge = radiograph_pictures(report)
    if not shown:
        return ""
    swatches = ['<span><i class="ref"></i>drawn by people</span>']
    for index, name in enumerate(report.scored[0].scores.summary.categories):
        swatches.append(f'<span><i style="border-color:{colour_of(index)}"></i>{escape(name)}, found</span>')
    return section(
        "What it looks like",
        f"Chosen by {judge}; shown is what reaches the score at which a run has one false positive per image.",
        f'<div class="legend">{"".join(swatches)}</div>',
        *map(_viewer, shown),
    )


def _viewer(picture: RadiographPicture) -> str:
    """One panel per run, side by side where there is room, with what each found and missed below."""
    panels = []
    for label, png in picture.panels.items():
        true, missed, false = picture.counts[label]
        caption = f"{true} found, {missed} missed, {false} false"
        shown = image(png, f"{picture.rank} image {picture.case}, {label}", caption)
        panels.append(f'<div class="panel"><em>{escape(label)}</em>{shown}</div>')
    title = f"<strong>{picture.rank.capitalize()}</strong> · {escape(picture.case)}"
    content = f'<div class="panels">{"".join(panels)}</div><figcaption>{title}</figcaption>'
    return f'<figure class="viewer">{content}</figure>'


def radiograph_pictures(report: Report) -> tuple[list[RadiographPicture], str]:
    """Pictures of the best, the median and the worst image with boxes, and of the clearest false alarm in an image
    without, ranked by the run that the page is about.

    Returns:
        The pictures, worst first, and the label of the run that ranked the images; none where the raw data set is not
        there any more.
    """
    judge, raw = judge_of(report), report.raw
    if judge is None or raw is None or not (raw / "dataset.json").exists():
        return [], ""
    shown = shown_beside(report.scored, judge, _RUNS)
    files, description = {}, DatasetDescription.load(raw / "dataset.json")
    scaling = scaling_of(description.extra, str(raw / "dataset.json"))
    for found in detection_cases(raw, description):
        files[found.case] = found.images[0]
    pictures = []
    for rank, case in ranked_images(judge.scores):
        try:
            pixels = to_eight_bit(read_radiograph(files[case]).pixels, scaling)[0]
        except (MedkdError, KeyError) as error:  # a file that went missing since the scoring must not cost the report
            _log.warning("Without a picture of %s: %s", case, error)
            continue
        counts, panels = {}, {}
        for entry in shown:
            if case in entry.scores.summary.truths:
                counts[entry.label] = entry.scores.balance(case)
                panels[entry.label] = _png(draw_boxes(pixels, _boxes(entry.scores, case), _LARGEST))
        pictures.append(RadiographPicture(rank, case, counts, panels))
    return pictures, judge.label


def ranked_images(judge: DetectionScores) -> list[tuple[str, str]]:
    """(rank, case) of the images to show, each case once.

    Images with boxes are ordered by ``2 TP / (2 TP + FP + FN)`` at one false positive per image, then by the highest
    score of a false detection; images without, by the highest score.
    """
    positive: list[tuple[float, float, str]] = []
    alarms: list[tuple[float, str]] = []
    for case, truth in judge.summary.truths.items():
        highest = float(judge.boxes(case).scores.max(initial=0.0))
        true, missed, false = judge.balance(case)
        if len(truth):
            quality = 2 * true / (2 * true + false + missed)
            positive.append((quality, -highest if false else 0.0, case))
        elif false:
            alarms.append((highest, case))
    found: dict[str, str] = {}
    if positive:
        positive.sort()
        *_, worst = positive[0]
        *_, median = positive[len(positive) // 2]
        *_, best = positive[-1]
        for rank, case in (("worst", worst), ("best", best), ("median", median)):
            found.setdefault(case, rank)
    if alarms:
        _, case = max(alarms, key=lambda alarm: alarm[0])
        found[case] = "false alarm"
    places = ("worst", "median", "best", "false alarm")
    shown = [(rank, case) for case, rank in found.items()]
    return sorted(shown, key=lambda entry: places.index(entry[0]))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _boxes(scores: DetectionScores, case: str) -> list[DrawnBox]:
    """What was found, on top of what was drawn."""
    found = scores.boxes(case, scores.cut).only(slice(_MOST))
    boxes = []
    for box, kind, score in zip(found.boxes.tolist(), found.classes.tolist(), found.scores, strict=True):
        tag = f"{scores.found.categories[kind]} {score:.2f}"
        boxes.append(DrawnBox(tuple(box), tag, colour_of(kind)))
    for box in scores.summary.truths[case].boxes.tolist():
        boxes.append(DrawnBox(tuple(box), "", TRUTH))
    return boxes
