"""Scans to leaf through: slices with the contours of reference and predictions, failures first."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite
from pathlib import Path

import numpy as np
from PIL import Image

from medkd.core.dataset import DatasetDescription, training_cases
from medkd.core.errors import MedkdError
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.evaluation.report.data import Report, RunEntry
from medkd.evaluation.report.html import data_url, number, section
from medkd.evaluation.report.pictures import judge_of, shown_beside
from medkd.evaluation.report.segmentation_scores import SegmentationScores
from medkd.io.volumes import read_label, read_volume

# Bright on grey images and told apart when colour-blind.
CONTOURS = ("#ffd166", "#4cc9f0", "#ff6b9d", "#7ae582", "#ff9f1c", "#b892ff", "#f1faee", "#e63946")
REFERENCE = "#ffffff"

# Soft-tissue window in HU; other modalities are shown between the slices' percentiles.
_CT_WINDOW = (-160.0, 240.0)

_MOST_SLICES = 16
_SIDE = 320  # pixels of a slice's long side
_LINE = 2  # pixels of a contour
_FAILURES = 2  # cases in which something was missed or invented


_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A scan to leaf through.

    Attributes:
        rank: why it is shown: ``failure``, ``worst``, ``median`` or ``best``.
        case: case id.
        failures: what was missed or invented by the run that ranks.
        dice: label of each shown run → mean Dice of the case.
        grey: JPEG of all shown slices, one below the other.
        reference: PNG of the reference's contours, likewise.
        predictions: label of each shown run → PNG of its contours.
        slices: number of each shown slice in the volume, from 1 on.
        first: place of the slice that shows most structure and error.
        size: width and height of a slice in mm.
    """

    rank: str
    case: str
    failures: tuple[str, ...]
    dice: Mapping[str, float]
    grey: bytes
    reference: bytes
    predictions: Mapping[str, bytes]
    slices: tuple[int, ...]
    first: int
    size: tuple[float, float]


def picture_section(report: Report) -> str:
    """The part of the page with the scans; nothing where images or predictions are not there any more."""
    shown, judge = pictures(report)
    if not shown:
        return ""
    names = report.scored[0].scores.parts
    swatches = ['<span><i class="ref"></i>reference</span>']
    for index, name in enumerate(names):
        swatches.append(
            f'<span><i style="border-color:{CONTOURS[index % len(CONTOURS)]}"></i>{escape(name)}, predicted</span>'
        )
    return section(
        "What it looks like",
        f"Failures first, then the worst, the median and the best case of {judge}; drag the slider to leaf through.",
        f'<div class="legend">{"".join(swatches)}</div>',
        *(_viewer(picture) for picture in shown),
    )


def pictures(report: Report) -> tuple[list[Picture], str]:
    """A few cases, ranked by the run that the page is about.

    Returns:
        The pictures, failures and the worst case first, and the label of the run that ranked the cases; no pictures
        where the raw data set or the predictions are not there any more.
    """
    judge = judge_of(report)
    if judge is None or report.raw is None or not (report.raw / "dataset.json").exists():
        return [], ""
    description = DatasetDescription.load(report.raw / "dataset.json")
    files = _files(report.raw, description)
    shown = shown_beside(report.scored, judge)
    found = []
    for rank, name in ranked(judge.scores):
        predicted = _predicted(shown, name)
        if name not in files or not predicted:
            continue
        try:
            found.append(_picture(rank, name, files[name], predicted, judge, description))
        except MedkdError as error:  # a file that went missing or bad since the scoring must not cost the report
            _log.warning("Without a picture of %s: %s", name, error)
    return found, judge.label


def _files(raw: Path, description: DatasetDescription) -> dict[str, tuple[str, Path, Path]]:
    """File name of the reference → case, its first image and its reference, where both are there."""
    found = {}
    for case in training_cases(raw, description):
        if case.label is not None and case.images[0].exists():
            found[case.label.name] = (case.case, case.images[0], case.label)
    return found


def _predicted(entries: Sequence[RunEntry], case: str) -> list[tuple[RunEntry, Path]]:
    """The runs that have a prediction of a case."""
    found = []
    for entry in entries:
        path = prediction_of(entry, case)
        if path is not None:
            found.append((entry, path))
    return found


def ranked(scores: SegmentationScores) -> list[tuple[str, str]]:
    """(rank, file name of the reference) of the cases to show, each once."""
    means = scores.case_means()
    order = []
    for index in np.argsort(means, kind="stable"):
        if np.isfinite(means[index]):
            order.append(scores.cases[index])
    if not order:
        return []
    failed = [name for name in order if scores.failures(name)]
    chosen = [("failure", name) for name in failed[:_FAILURES]]
    chosen += [("worst", order[0]), ("median", order[len(order) // 2]), ("best", order[-1])]
    found: dict[str, str] = {}
    for rank, name in chosen:
        found.setdefault(name, rank)
    return [(rank, name) for name, rank in found.items()]


def prediction_of(entry: RunEntry, case: str) -> Path | None:
    """The prediction of a case (file name of its reference), or None where there is no file."""
    file = case
    for scored in entry.scores.summary.cases:
        if scored.name == case:
            file = Path(scored.prediction_file).name  # its ending may be another than the reference's
    for fold in entry.folds:
        path = entry.path / f"fold_{fold}" / "validation" / file
        if path.exists():
            return path
    return None


def _picture(
    rank: str,
    name: str,
    files: tuple[str, Path, Path],
    predicted: Sequence[tuple[RunEntry, Path]],
    judge: RunEntry,
    description: DatasetDescription,
) -> Picture:
    case, image, label = files
    volume, truth = read_volume(image), read_label(label)
    maps = [read_label(path).array for _, path in predicted]
    interesting = (truth.array > 0) | np.any([found != truth.array for found in maps], axis=0)
    view = View.of(volume.geometry, interesting)
    grey = view.stack(volume.array)
    modality = description.channel_names[0].upper()
    low, high = _CT_WINDOW if modality == "CT" else np.percentile(grey, (1, 99.5))
    dice = {}
    for entry, _ in predicted:
        means = dict(zip(entry.scores.cases, entry.scores.case_means(), strict=True))
        dice[entry.label] = float(means.get(name, np.nan))
    drawn = {}
    for (entry, _), found in zip(predicted, maps, strict=True):
        drawn[entry.label] = _contours(view, found, description.labels, CONTOURS)
    return Picture(
        rank=rank,
        case=case,
        failures=tuple(judge.scores.failures(name)),
        dice=dice,
        grey=_grey(view, grey, float(low), float(high)),
        reference=_contours(view, truth.array, description.labels, (REFERENCE,)),
        predictions=drawn,
        slices=tuple(index + 1 for index in view.indices),
        first=view.first,
        size=view.size,
    )


@dataclass(frozen=True, kw_only=True)
class View:
    """Slices of a volume, cut to what is interesting, turned as a radiologist sees them: the patient's right on the
    left, anterior or superior up.

    Attributes:
        orientation: of the file's axes, see ``nibabel.orientations``.
        axis: of the patient (R, A, S) across which is cut: the coarsest one, axial where voxels are cubes.
        indices: of the slices along it, in the order shown.
        first: place in ``indices`` of the slice that shows most.
        box: the part of a slice that is shown.
        size: its width and height in mm.
    """

    orientation: np.ndarray
    axis: int
    indices: tuple[int, ...]
    first: int
    box: tuple[slice, slice]
    size: tuple[float, float]

    @classmethod
    def of(cls, geometry: Geometry, interesting: np.ndarray) -> View:
        """Choose slices and box by a mask ``(z, y, x)`` of what should be seen."""
        from nibabel.orientations import apply_orientation, io_orientation

        orientation = io_orientation(geometry.matrix)
        spacing = np.zeros(3)
        spacing[orientation[:, 0].astype(int)] = geometry.spacing[::-1]
        axis = int(np.argmax(spacing)) if spacing.max() > 1.05 * spacing.min() else 2
        mask = apply_orientation(np.transpose(interesting), orientation)
        across = [other for other in range(3) if other != axis]
        amount = mask.sum(axis=tuple(across))
        plane = mask.any(axis=axis)
        box = _span(plane.any(axis=1), spacing[across[0]]), _span(plane.any(axis=0), spacing[across[1]])
        width, height = ((box[i].stop - box[i].start) * spacing[across[i]] for i in range(2))
        indices = _indices(amount)
        first = indices.index(int(np.argmax(amount)))
        return cls(
            orientation=orientation,
            axis=axis,
            indices=indices,
            first=first,
            box=box,
            size=(float(width), float(height)),
        )

    def stack(self, array: np.ndarray) -> np.ndarray:
        """The slices ``(n, height, width)`` of a volume ``(z, y, x)``."""
        from nibabel.orientations import apply_orientation

        turned = apply_orientation(np.transpose(array), self.orientation)
        slices = []
        for index in self.indices:
            plane = np.take(turned, index, self.axis)[self.box]
            slices.append(np.flip(plane).T)
        return np.stack(slices)

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height of a drawn slice."""
        width, height = self.size
        factor = _SIDE / max(self.size)
        return max(1, round(width * factor)), max(1, round(height * factor))


def _indices(amount: np.ndarray) -> tuple[int, ...]:
    """At most so many slices between the first and the last that show something, the one that shows most among them."""
    present = np.flatnonzero(amount)
    if not present.size:
        return (int(np.argmax(amount)),)
    first, last = max(int(present[0]) - 1, 0), min(int(present[-1]) + 1, len(amount) - 1)
    spread = np.linspace(first, last, min(_MOST_SLICES - 1, last - first + 1)).round().astype(int)
    return tuple(sorted({*spread.tolist(), int(np.argmax(amount))}))


def _span(present: np.ndarray, spacing: float) -> slice:
    """The range of True with a margin of a quarter of its length, at least 10 mm."""
    where = np.flatnonzero(present)
    if not where.size:
        return slice(0, len(present))
    first, last = int(where[0]), int(where[-1])
    margin = int(max(0.25 * (last - first), 10 / spacing)) + 1
    return slice(max(first - margin, 0), min(last + margin + 1, len(present)))


def _grey(view: View, slices: np.ndarray, low: float, high: float) -> bytes:
    shades = np.clip((slices - low) / max(high - low, 1e-6), 0, 1)
    drawn = []
    for plane in (shades * 255).astype(np.uint8):
        picture = Image.fromarray(np.ascontiguousarray(plane))
        drawn.append(np.asarray(picture.resize(view.pixels, Image.Resampling.BICUBIC)))
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(drawn)).save(buffer, format="JPEG", quality=72)
    return buffer.getvalue()


def _contours(view: View, array: np.ndarray, labels: LabelSpec, colours: Sequence[str]) -> bytes:
    """The borders of all structures on a clear ground, one slice below the other."""
    width, height = view.pixels
    planes = view.stack(array)
    rows = (np.arange(height) + 0.5) * planes.shape[1] / height
    columns = (np.arange(width) + 0.5) * planes.shape[2] / width
    enlarged = planes[:, rows.astype(int)][:, :, columns.astype(int)]
    canvas = np.zeros(enlarged.shape, np.uint8)
    for index, (_, values) in enumerate(labels.foreground):
        mask = np.isin(enlarged, values)
        border = mask & ~_eroded(mask)
        canvas[border] = 1 + index % len(colours)
    palette = [0, 0, 0]
    for colour in colours:
        palette += bytes.fromhex(colour.removeprefix("#"))
    picture = Image.fromarray(canvas.reshape(-1, width))
    picture.putpalette(palette)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", transparency=0, optimize=True)
    return buffer.getvalue()


def _eroded(masks: np.ndarray) -> np.ndarray:
    """Masks ``(n, height, width)`` without their outermost pixels; the border of the picture is no border."""
    from skimage.morphology import diamond, erosion

    neighbours = diamond(_LINE)
    return np.stack([erosion(mask, neighbours) for mask in masks])


def _viewer(picture: Picture) -> str:
    """Panels side by side, one slider for all, and switches for reference and prediction."""
    width, height = picture.size
    style = (
        f"--n:{len(picture.slices)};--i:{picture.first};--grey:url({data_url(picture.grey, 'jpeg')});"
        f"--ref:url({data_url(picture.reference, 'png')})"
    )
    panels = []
    for label, png in picture.predictions.items():
        layers = (
            '<div class="grey"></div><div class="ref"></div>'
            f'<div class="pred" style="background-image:url({data_url(png, "png")})"></div>'
        )
        alt = escape(f"{picture.case}, {label}", quote=True)
        panels.append(
            f'<div class="panel"><em>{escape(label)}</em><div class="pane" role="img" aria-label="{alt}" '
            f'style="aspect-ratio:{width:.1f}/{height:.1f}">{layers}</div></div>'
        )
    names = " ".join(map(str, picture.slices))
    slider = ""
    if len(picture.slices) > 1:
        slider = (
            f'<input type="range" min="0" max="{len(picture.slices) - 1}" value="{picture.first}" '
            f'aria-label="slice" data-names="{names}">'
        )
    switches = "".join(
        f'<label><input type="checkbox" data-layer="{layer}" checked> {name}</label>'
        for layer, name in (("ref", "reference"), ("pred", "prediction"))
    )
    shown = f"slice <output>{picture.slices[picture.first]}</output>"
    controls = f'<div class="controls"><span>{shown}</span>{slider}{switches}</div>'
    caption = f"<figcaption>{_caption(picture)}</figcaption>"
    content = f'<div class="panels">{"".join(panels)}</div>{controls}{caption}'
    return f'<figure class="viewer" style="{style}">{content}</figure>'


def _caption(picture: Picture) -> str:
    scores = []
    for label, dice in picture.dice.items():
        if isfinite(dice):
            scores.append(f"{escape(label)} {number(dice)}")
    rank = "Failure" if picture.rank == "failure" else f"{picture.rank.capitalize()} case"
    failed = f" · {escape(', '.join(picture.failures))}" if picture.failures else ""
    return f"<strong>{rank}</strong> · {escape(picture.case)}{failed} · Dice: {' · '.join(scores)}"
