"""Slices of the worst, median and best case with the contours of reference and predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medkd.core.dataset import DatasetDescription, training_cases
from medkd.core.errors import MedkdError
from medkd.core.geometry import Geometry
from medkd.evaluation.report.figures import case_means, figure_png, new_figure
from medkd.evaluation.report.segmentation_data import RunEntry
from medkd.io.volumes import read_label, read_volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes

View = Callable[[np.ndarray], np.ndarray]

# Bright on grey images and told apart when colour-blind.
CONTOURS = ("#ffd166", "#4cc9f0", "#ff6b9d", "#7ae582", "#ff9f1c", "#b892ff", "#f1faee", "#e63946")
REFERENCE = "#ffffff"

# Soft-tissue window in HU; other modalities are shown between the slice's percentiles.
_CT_WINDOW = (-160.0, 240.0)

_PANEL = 2.5  # inches


@dataclass(frozen=True)
class Picture:
    """A picture of one case.

    Attributes:
        rank: ``worst``, ``median`` or ``best``.
        case: case id.
        dice: label of each shown run → mean Dice of the case.
        png: the picture: one panel per run.
    """

    rank: str
    case: str
    dice: Mapping[str, float]
    png: bytes


def pictures(entries: Sequence[RunEntry], raw: Path) -> tuple[list[Picture], str]:
    """Pictures of three cases, ranked by the first distilled run (else the first run that has scores).

    Args:
        entries: runs of the report.
        raw: raw data set with images and reference labels.

    Returns:
        The pictures, worst first, and the label of the run that ranked the cases; no pictures where the raw data set or
        the predictions are not there any more.
    """
    scored = [e for e in entries if e.summary is not None and e.summary.cases]
    if not scored or not (raw / "dataset.json").exists():
        return [], ""
    judge = next((e for e in scored if e.role == "distilled"), scored[0])
    shown = _shown(scored, judge)
    description = DatasetDescription.load(raw / "dataset.json")
    files = {f.label.name: f for f in training_cases(raw, description) if f.label is not None}
    found = []
    for rank, name in _ranked(judge):
        images = files.get(name)
        predicted = [(e, path) for e in shown if (path := e.prediction(name)) is not None]
        if images is None or images.label is None or not predicted or not images.images[0].exists():
            continue
        try:
            png = _draw(images.images[0], images.label, predicted, description)
        except MedkdError:  # a file that went missing or bad since the scoring must not cost the report
            continue
        dice = {
            e.label: float(case_means(e)[[c.name for c in e.summary.cases].index(name)])
            for e, _ in predicted
            if e.summary
        }
        found.append(Picture(rank, images.case, dice, png))
    return found, judge.label


def _shown(entries: Sequence[RunEntry], judge: RunEntry) -> list[RunEntry]:
    """At most five panels: teachers, students alone and distilled ones, the judge always among them."""
    order = [*(e for e in entries if e.role == "teacher"), *(e for e in entries if e.role == "alone")][:3]
    distilled = [judge, *(e for e in entries if e.role == "distilled" and e is not judge)] if judge not in order else []
    return (order + distilled)[:5]


def _ranked(judge: RunEntry) -> list[tuple[str, str]]:
    means = case_means(judge)
    order = [i for i in np.argsort(means, kind="stable") if np.isfinite(means[i])]
    if not order or judge.summary is None:
        return []
    ranks = {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}
    seen: set[int] = set()
    names = [c.name for c in judge.summary.cases]
    return [(rank, names[i]) for rank, i in ranks.items() if i not in seen and not seen.add(i)]  # type: ignore[func-returns-value]


def _draw(
    image: Path, label: Path, predicted: Sequence[tuple[RunEntry, Path]], description: DatasetDescription
) -> bytes:
    volume, truth = read_volume(image), read_label(label)
    maps = [read_label(path).array for _, path in predicted]
    view, height, width = _view(volume.geometry, truth.array, maps)
    grey, reference = view(volume.array), view(truth.array)
    low, high = _CT_WINDOW if description.channel_names[0].upper() == "CT" else np.percentile(grey, (1, 99.5))
    title = 0.2  # inches above each panel
    figure, panels = new_figure(_PANEL * len(maps), _PANEL * height / width + title, len(maps), padding=0.06, gap=0.0)
    figure.set_facecolor("#10161c")
    for axes, (entry, _), labels in zip(panels, predicted, maps, strict=True):
        axes.imshow(
            grey,
            cmap="gray",
            vmin=low,
            vmax=max(high, low + 1e-6),
            aspect=height / width * grey.shape[1] / grey.shape[0],
        )
        shown = view(labels)
        for i, (_, values) in enumerate(description.labels.foreground):
            _contour(axes, np.isin(reference, values), REFERENCE, 1.0)
            _contour(axes, np.isin(shown, values), CONTOURS[i % len(CONTOURS)], 1.5)
        axes.set_title(entry.label, fontsize=8.5, color="#e8eef3", pad=4)
        axes.set_axis_off()
    return figure_png(figure, facecolor=figure.get_facecolor())


def _contour(axes: Axes, mask: np.ndarray, colour: str, width: float) -> None:
    if mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=[colour], linewidths=width)


def _view(geometry: Geometry, truth: np.ndarray, maps: Sequence[np.ndarray]) -> tuple[View, float, float]:
    """The slice that shows most structure and error, cut to the structures, as a function of a volume, and its size in
    mm.

    It is taken across the coarsest axis (axial where voxels are cubes), turned as a radiologist sees it: the patient's
    right on the left, anterior or superior up.
    """
    from nibabel.orientations import apply_orientation, io_orientation

    orientation = io_orientation(geometry.matrix)

    def canonical(array: np.ndarray) -> np.ndarray:
        return apply_orientation(np.transpose(array), orientation)  # (z, y, x) → RAS+

    spacing = np.zeros(3)
    spacing[orientation[:, 0].astype(int)] = geometry.spacing[::-1]
    axis = int(np.argmax(spacing)) if spacing.max() > 1.05 * spacing.min() else 2
    interesting = canonical((truth > 0) | np.any([m != truth for m in maps], axis=0))
    across = tuple(a for a in range(3) if a != axis)
    index = int(np.argmax(interesting.sum(axis=across)))
    plane = np.take(interesting, index, axis)
    box = tuple(_span(plane.any(axis=1 - a), spacing[across[a]]) for a in range(2))

    def view(array: np.ndarray) -> np.ndarray:
        return np.take(canonical(array), index, axis)[box][::-1, ::-1].T

    size = [(min(b.stop, n) - b.start) * spacing[a] for b, n, a in zip(box, plane.shape, across, strict=True)]
    return view, size[1], size[0]


def _span(present: np.ndarray, spacing: float) -> slice:
    """The range of True with a margin of a quarter of its length, at least 10 mm."""
    where = np.flatnonzero(present)
    if not where.size:
        return slice(0, len(present))
    margin = int(max(0.25 * (where[-1] - where[0]), 10 / spacing)) + 1
    return slice(max(int(where[0]) - margin, 0), min(int(where[-1]) + margin + 1, len(present)))
