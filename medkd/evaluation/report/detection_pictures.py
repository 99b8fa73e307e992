"""Validation images of a detection data set with the boxes that were drawn and those that were found, run by run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkd.core.dataset import DatasetDescription, detection_cases
from medkd.core.errors import MedkdError
from medkd.evaluation.detection.drawing import TRUTH, DrawnBox, colour_of, draw_boxes
from medkd.evaluation.report.detection_data import DetectionEntry
from medkd.evaluation.report.figures import figure_png, new_figure
from medkd.io.radiographs import read_radiograph, to_eight_bit

_PANEL = 2.6  # inches
_LARGEST = 440  # pixels of a panel's long side, as many as the figure has, so that the tags stay legible
_MOST = 10  # boxes per panel
_RUNS = 4


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


def radiograph_pictures(entries: Sequence[DetectionEntry], raw: Path) -> tuple[list[RadiographPicture], str]:
    """Pictures of the best, the median and the worst image with boxes, and of the clearest false alarm in an image
    without.

    Args:
        entries: scored runs of the report; the first distilled one (else the first) ranks the images.
        raw: raw data set with the images.

    Returns:
        The pictures, worst first, and the label of the run that ranked the images; none where the raw data set is not
        there any more.
    """
    if not entries or not (raw / "dataset.json").exists():
        return [], ""
    judge = next((e for e in entries if e.role == "distilled"), entries[0])
    order = [*[e for e in entries if e.role == "teacher"][:1], *[e for e in entries if e.role == "alone"][:1], judge]
    order += [e for e in entries if e.role == "distilled"]
    shown = list({e.name: e for e in order}.values())[:_RUNS]
    files = {f.case: f.images[0] for f in detection_cases(raw, DatasetDescription.load(raw / "dataset.json"))}
    pictures = []
    for rank, case in ranked_images(judge):
        runs = [e for e in shown if case in e.scores.truths]
        try:
            pixels = to_eight_bit(read_radiograph(files[case]).pixels)[0]
        except (MedkdError, KeyError):  # a file that went missing or bad since the scoring must not cost the report
            continue
        pictures.append(
            RadiographPicture(rank, case, {e.label: e.balance(case) for e in runs}, _draw(pixels, case, runs))
        )
    return pictures, judge.label


def ranked_images(judge: DetectionEntry) -> list[tuple[str, str]]:
    """(rank, case) of the images to show, each case once.

    Images with boxes are ordered by ``2 TP / (2 TP + FP + FN)`` at one false positive per image, then by the highest
    score of a false detection; images without, by the highest score.
    """

    def quality(case: str) -> tuple[float, float]:
        true, missed, false = judge.balance(case)
        return 2 * true / (2 * true + false + missed), -float(judge.boxes(case).scores[:1].sum()) * (false > 0)

    positive = sorted((c for c, t in judge.scores.truths.items() if len(t)), key=lambda c: (quality(c), c))
    alarms = [c for c, t in judge.scores.truths.items() if not len(t) and len(judge.boxes(c, judge.cut))]
    found: dict[str, str] = {}
    if positive:
        for rank, case in (("worst", positive[0]), ("best", positive[-1]), ("median", positive[len(positive) // 2])):
            found.setdefault(case, rank)
    if alarms:
        found[max(alarms, key=lambda c: float(judge.boxes(c).scores.max()))] = "false alarm"
    places = ("worst", "median", "best", "false alarm")
    return sorted(((rank, case) for case, rank in found.items()), key=lambda entry: places.index(entry[0]))


def _draw(pixels: np.ndarray, case: str, runs: Sequence[DetectionEntry]) -> bytes:
    height, width = pixels.shape[:2]
    shape = min(max(height / width, 0.6), 1.6)
    figure, panels = new_figure(_PANEL * len(runs), _PANEL * shape + 0.2, len(runs), padding=0.06, gap=0.0)
    figure.set_facecolor("#10161c")
    for axes, entry in zip(panels, runs, strict=True):
        axes.imshow(np.asarray(draw_boxes(pixels, _boxes(entry, case), _LARGEST)))
        axes.set_title(entry.label, fontsize=8.5, color="#e8eef3", pad=4)
        axes.set_axis_off()
    return figure_png(figure, facecolor=figure.get_facecolor())


def _boxes(entry: DetectionEntry, case: str) -> list[DrawnBox]:
    """What was found, on top of what was drawn."""
    found, truth, names = entry.boxes(case, entry.cut), entry.scores.truths[case], entry.found.categories
    first = found.only(np.arange(min(len(found), _MOST)))
    boxes = [
        DrawnBox(tuple(box), f"{names[kind]} {score:.2f}", colour_of(int(kind)))
        for box, kind, score in zip(first.boxes.tolist(), first.classes, first.scores, strict=True)
    ]
    return boxes + [DrawnBox(tuple(box), "", TRUTH) for box in truth.boxes.tolist()]
