"""The scores of one case, structure by structure, with a stated rule for what is missed or invented."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.evaluation.segmentation.metrics import (
    HausdorffDefinition,
    average_surface_distance_of,
    average_symmetric_surface_distance_of,
    hausdorff95_of,
    normalized_surface_distance_of,
)
from medkd.evaluation.segmentation.surfaces import surface_distances

Status = Literal["scored", "missed", "invented", "absent"]

# There is no tolerance that suits every organ; 2 mm is about the variation between observers for organs on CT.
DEFAULT_TOLERANCE_MM = 2.0

# Voxels per bincount, which works on 8-byte copies: keeps them at 16 MiB.
_CHUNK = 1 << 21


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """The scores of one structure (label or region) in one case.

    Attributes:
        name: the structure's name.
        values: its label values.
        status: ``"scored"`` (in prediction and reference), ``"missed"`` (only in the reference), ``"invented"`` (only
            in the prediction) or ``"absent"`` (in neither).
        dice: Dice, 0 to 1; 0 when missed or invented, None when absent.
        iou: intersection over union, likewise.
        tp: voxels in both.
        fp: voxels in the prediction only.
        fn: voxels in the reference only.
        tn: voxels in neither.
        hd95: in mm; the image's diagonal when missed or invented, None when absent or not computed.
        nsd: normalised surface distance, 0 to 1; 0 when missed or invented, None when absent or not computed.
        asd: average surface distance in mm, prediction to reference; otherwise as ``hd95``.
        assd: average symmetric surface distance in mm; otherwise as ``hd95``.
    """

    name: str
    values: tuple[int, ...]
    status: Status
    dice: float | None
    iou: float | None
    tp: int
    fp: int
    fn: int
    tn: int
    hd95: float | None
    nsd: float | None
    asd: float | None = None
    assd: float | None = None

    @property
    def n_pred(self) -> int:
        """Voxels of the structure in the prediction."""
        return self.tp + self.fp

    @property
    def n_ref(self) -> int:
        """Voxels of the structure in the reference."""
        return self.tp + self.fn


def evaluate_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    labels: LabelSpec,
    *,
    nsd_tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    definition: HausdorffDefinition = "max",
    further: Collection[str] = (),
    case: str = "case",
) -> tuple[ClassScore, ...]:
    """Score every foreground structure of a case.

    A structure in neither map is absent and has no scores. A structure in only one of them is missed or invented: Dice,
    IoU and NSD are 0 and every distance is the image's diagonal, so that a failure always counts. Voxels whose
    reference is the ``ignore`` label take no part: they are not counted, and for surfaces they are background in both
    maps.

    Args:
        prediction: label values ``(z, y, x)``, integer.
        reference: label values of the same shape.
        spacing: voxel size in mm along ``(z, y, x)``.
        labels: the structures.
        nsd_tolerance_mm: tolerance of the normalised surface distance.
        definition: of HD95, see :func:`medkd.evaluation.segmentation.metrics.hausdorff95`.
        further: ``ASD``, ``ASSD`` where they shall be computed, too.
        case: case id for error texts.

    Returns:
        One score per structure, in the order of ``labels.foreground``.

    Raises:
        DataError: shapes differ, spacing does not fit, or a map holds a value that ``labels`` does not name.
    """
    if prediction.shape != reference.shape or len(spacing) != reference.ndim:
        raise DataError(
            f"{case}: prediction {prediction.shape}, reference {reference.shape} and spacing {tuple(spacing)} do not "
            "fit together."
        )
    counts = confusion(prediction, reference, labels, case)
    if labels.ignore is not None:
        prediction = np.where(reference == labels.ignore, 0, prediction)
    boxes = _boxes(prediction, reference, labels)
    result = []
    for name, values in labels.foreground:
        tp, fp, fn, tn = _counts(counts, values)
        status = status_of(tp + fp, tp + fn)
        hd95, nsd, asd, assd = None, None, None, None
        if status == "scored":
            box = _join([boxes[value] for value in values], reference.shape)
            ours, theirs = _mask(prediction[box], values), _mask(reference[box], values)
            distances = surface_distances(ours, theirs, spacing)
            hd95 = hausdorff95_of(distances, definition)
            nsd = normalized_surface_distance_of(distances, nsd_tolerance_mm)
            asd, assd = average_surface_distance_of(distances), average_symmetric_surface_distance_of(distances)
        elif status != "absent":
            hd95, nsd = _diagonal(reference.shape, spacing), 0.0
            asd = assd = hd95
        score = ClassScore(
            name=name,
            values=values,
            status=status,
            dice=_ratio(2 * tp, 2 * tp + fp + fn),
            iou=_ratio(tp, tp + fp + fn),
            tp=tp,
            fp=fp,
            fn=fn,
            tn=tn,
            hd95=hd95,
            nsd=nsd,
            asd=asd if "ASD" in further else None,
            assd=assd if "ASSD" in further else None,
        )
        result.append(score)
    return tuple(result)


def _ratio(part: int, whole: int) -> float | None:
    """None for an absent structure, of which there is no voxel in either map."""
    return part / whole if whole else None


def _diagonal(shape: tuple[int, ...], spacing: Sequence[float]) -> float:
    """Of the image, in mm; an axis of one voxel has no extent."""
    sides = [count * step for count, step in zip(shape, spacing, strict=True) if count > 1]
    return float(np.linalg.norm(sides))


def status_of(n_pred: int, n_ref: int) -> Status:
    """What became of a structure of so many voxels in prediction and reference."""
    if n_pred and n_ref:
        return "scored"
    if n_ref:
        return "missed"
    return "invented" if n_pred else "absent"


def confusion(prediction: np.ndarray, reference: np.ndarray, labels: LabelSpec, case: str) -> np.ndarray:
    """Voxel counts ``[reference value, prediction value]`` in one pass; the ignored voxels are left out.

    Raises:
        DataError: a map holds values that ``labels`` does not name.
    """
    _check_values("prediction", prediction, labels, case)
    _check_values("reference", reference, labels, case)
    size = max(labels.values) + 1
    ours, theirs = prediction.reshape(-1), reference.reshape(-1)
    total = np.zeros(size * size, dtype=np.int64)
    for start in range(0, ours.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        pairs = theirs[part].astype(np.int32) * size + ours[part]
        total += np.bincount(pairs, minlength=size * size)
    counts = total.reshape(size, size)
    if labels.ignore is not None:
        counts[labels.ignore] = 0
        if counts[:, labels.ignore].any():
            raise DataError(
                f"{case}: the prediction holds the ignore label {labels.ignore} where the reference is annotated."
            )
    return counts


def _check_values(what: str, array: np.ndarray, labels: LabelSpec, case: str) -> None:
    """A label map holds integers between 0 and the largest label.

    Raises:
        DataError: it does not.
    """
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{case}: the {what} must hold integer label values, found {array.dtype}.")
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    if low < 0 or high > max(labels.values):
        wrong = low if low < 0 else high
        raise DataError(f"{case}: the {what} holds the value {wrong}, the labels are {list(labels.values)}.")


def dice_of(counts: np.ndarray, values: tuple[int, ...]) -> float | None:
    """The Dice of a structure from :func:`confusion`; None where it is absent from both maps."""
    tp, fp, fn, _ = _counts(counts, values)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _counts(confusion: np.ndarray, values: tuple[int, ...]) -> tuple[int, int, int, int]:
    chosen = list(values)
    tp = int(confusion[np.ix_(chosen, chosen)].sum())
    fn = int(confusion[chosen].sum()) - tp
    fp = int(confusion[:, chosen].sum()) - tp
    tn = int(confusion.sum()) - tp - fp - fn
    return tp, fp, fn, tn


Box = tuple[slice, ...] | None


def _boxes(prediction: np.ndarray, reference: np.ndarray, labels: LabelSpec) -> dict[int, Box]:
    """Bounding box of each label value over both maps; one pass over each map."""
    top = max(labels.values)
    ours = ndimage.find_objects(prediction, max_label=top)
    theirs = ndimage.find_objects(reference, max_label=top)
    boxes = {}
    for value, pair in enumerate(zip(ours, theirs, strict=True), start=1):
        boxes[value] = _join(pair, reference.shape, margin=0)
    return boxes


def _join(boxes: Sequence[Box], shape: tuple[int, ...], margin: int = 1) -> Box:
    present = [box for box in boxes if box is not None]
    if not present:
        return None
    sides = []
    for axis, length in enumerate(shape):
        start = min(box[axis].start for box in present) - margin
        stop = max(box[axis].stop for box in present) + margin
        sides.append(slice(max(start, 0), min(stop, length)))
    return tuple(sides)


def _mask(array: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    return array == values[0] if len(values) == 1 else np.isin(array, values)
