"""Evaluation of detections against reference boxes: the functions behind ``medkd_evaluate`` for detection data sets."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medkd.core.boxes import LABEL_ENDING, BoxAnnotation
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.patients import named_patients
from medkd.core.serial import nearest
from medkd.core.settled import SETTINGS_FILE
from medkd.evaluation.detection.coco import coco_scores
from medkd.evaluation.detection.intervals import intervals
from medkd.evaluation.detection.metrics import Key, Matches, compare_boxes, froc_curve
from medkd.evaluation.detection.predictions import (
    PREDICTIONS_FILE,
    Boxes,
    DetectionPredictions,
    truth_of,
)
from medkd.evaluation.detection.results import Curve, DetectionSummary, Rules, ordered
from medkd.evaluation.scoring import description_near
from medkd.evaluation.statistics import Interval, groups_of

_EMPTY = Boxes.of([], [], [])
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class References:
    """Annotated images.

    Attributes:
        folder: where the annotations lie.
        annotations: case id → boxes.
        categories: of the data set's description, empty where there is none.
        patients: case id → patient, where known.
    """

    folder: Path
    annotations: Mapping[str, BoxAnnotation]
    categories: tuple[str, ...] = ()
    patients: Mapping[str, str] = field(default_factory=dict)


def evaluate_detections(
    predictions: DetectionPredictions,
    references: References,
    *,
    classes: Sequence[str] | None = None,
    rules: Rules | None = None,
    missing: Sequence[str] = (),
) -> DetectionSummary:
    """Score detections in memory.

    Args:
        predictions: of all cases of ``references`` but the missing ones.
        references: what is true.
        classes: the classes to score, others are left out; None takes all of the predictions and the data set.
        rules: of scoring; None leaves a class ``text`` out of the second mean, FROC and AUC.
        missing: cases that count as images in which nothing was found.

    Raises:
        DataError: a reference box has an unknown class, the predictions' classes are called otherwise, or an image has
            another size than its annotation.
        MedkdError: pycocotools is not installed.
    """
    known = tuple(dict.fromkeys([*predictions.categories, *references.categories]))
    names = _chosen(classes, known)
    rules = (rules or Rules()).resolved(names)
    cases = sorted(references.annotations)
    _check_sizes(predictions, references, [case for case in cases if case not in missing])
    truths = {case: _truth(references, case, known, names) for case in cases}
    _check_classes(predictions.categories, references, truths, names, chosen=classes is not None)
    found = _found(predictions, cases, missing, names)
    matches = compare_boxes(
        found,
        list(truths.values()),
        names,
        excluded=rules.excluded or (),
        threshold=rules.threshold,
        criterion=rules.criterion,
    )
    patients = named_patients(references.patients, truths)
    values = intervals(matches, groups_of(cases, patients))
    scores = coco_scores(found, list(truths.values()), names)
    return DetectionSummary(
        categories=names,
        truths=truths,
        values=ordered(_with_coco(values, scores)),
        curves=_curves(matches),
        rules=rules,
        patients=patients,
        missing=tuple(missing),
    )


def _found(
    predictions: DetectionPredictions, cases: Sequence[str], missing: Sequence[str], names: Sequence[str]
) -> list[Boxes]:
    """Per case the detections of the classes ``names``; none of a case that is missing."""
    found = []
    for case in cases:
        if case in missing:
            found.append(_EMPTY)
        else:
            found.append(_renamed(predictions.images[case].found, predictions.categories, names))
    return found


def _with_coco(own: Mapping[Key, Interval], scores: Mapping[Key, float]) -> dict[Key, Interval]:
    """Our values with their means as COCO's tool gives them, and its other numbers without bounds."""
    values = dict(own)
    number = next(iter(own.values())).n
    unknown = Interval(math.nan, math.nan, math.nan, number)
    for key, mean in scores.items():
        values[key] = replace(own.get(key, unknown), mean=mean, n=number)
    return values


def _curves(matches: Matches) -> dict[str, Curve]:
    """The FROC curve of every class, and under an empty name that of all together."""
    curves = {}
    for name, matched in zip((*matches.categories, ""), matches.froc, strict=True):
        curves[name] = _thinned(*froc_curve(matched))
    return curves


def evaluate_detection_folder(
    predictions: Path,
    references: Path,
    *,
    dataset_json: Path | None = None,
    classes: Sequence[str] | None = None,
    allow_missing: bool = False,
    rules: Rules | None = None,
) -> DetectionSummary:
    """Score a ``predictions.json`` against annotations.

    Args:
        predictions: the file, or the folder that holds it.
        references: folder of ``CASE.json`` files, or a raw detection data set.
        dataset_json: names the classes and patients; None looks beside the annotations.
        classes: the classes to score; None takes all.
        allow_missing: count a case without predictions as an image without detections instead of refusing.
        rules: of scoring.

    Raises:
        DataError: predictions or references are missing (all are named), or they do not fit together.
    """
    found = DetectionPredictions.load(predictions)
    truth = read_references(references, list(found.images), dataset_json)
    missing = sorted(set(truth.annotations) - set(found.images))
    if missing and not allow_missing:
        raise DataError(
            f"{predictions}: no predictions for {len(missing)} of {len(truth.annotations)} cases: "
            f"{', '.join(missing)}. "
            "Predict them, or allow missing ones to count as images without detections."
        )
    extra = sorted(set(found.images) - set(truth.annotations))
    if extra:
        _log.warning(
            "%d predictions are not scored, since they are not among the references: %s", len(extra), ", ".join(extra)
        )
    return evaluate_detections(found, truth, classes=classes, rules=rules, missing=missing)


def read_references(folder: Path, cases: Sequence[str] = (), dataset_json: Path | None = None) -> References:
    """Read the annotations of a folder.

    Args:
        folder: of ``CASE.json`` files, or a raw data set: then ``labelsTr``, or ``labelsTs`` where the predicted cases
            lie there.
        cases: the predicted cases.
        dataset_json: see :func:`evaluate_detection_folder`.

    Raises:
        DataError: there are no annotations, or one cannot be read.
    """
    folder = _label_folder(Path(folder), cases)
    annotations = {}
    for path in sorted(folder.glob(f"*{LABEL_ENDING}")):
        if not path.name.startswith(".") and path.name not in _OTHERS:
            case = path.name.removesuffix(LABEL_ENDING)
            annotations[case] = BoxAnnotation.load(path)
    if not annotations:
        raise DataError(
            f"{folder}: expected annotations named CASE{LABEL_ENDING}, found none; give labelsTr or a raw detection "
            "data set."
        )
    described = dataset_json or description_near(folder)
    if described is None:
        return References(folder, annotations)
    description = DatasetDescription.load(described)
    return References(folder, annotations, description.categories, description.patients)


def _label_folder(folder: Path, cases: Sequence[str]) -> Path:
    """Of a raw data set the folder of annotations that holds the predicted cases; else the folder itself."""
    if not (folder / "labelsTr").is_dir():
        return folder
    test = any((folder / "labelsTs" / f"{case}{LABEL_ENDING}").exists() for case in cases)
    return folder / ("labelsTs" if test else "labelsTr")


_OTHERS = {
    PREDICTIONS_FILE,
    "dataset.json",
    "summary.json",
    "coco_results.json",
    "coco_images.json",
    SETTINGS_FILE,
}


def _chosen(classes: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in classes or () if name not in known]
    if unknown:
        raise DataError(
            f"Expected classes among {', '.join(known)}, found '{unknown[0]}'; choose among the classes that were "
            "predicted."
        )
    return tuple(classes) if classes else tuple(known)


def _truth(references: References, case: str, known: Sequence[str], names: Sequence[str]) -> Boxes:
    try:
        boxes = truth_of(references.annotations[case], known)
    except DataError as error:
        raise DataError(
            f"{references.folder / (case + LABEL_ENDING)}: {error} Give the data set's dataset.json, so that its "
            "classes are known."
        ) from error
    return _renamed(boxes, known, names)


def _renamed(boxes: Boxes, old: Sequence[str], new: Sequence[str]) -> Boxes:
    """The boxes of the classes in ``new``, with places there instead of in ``old``."""
    places = np.full(len(old), -1, np.int64)
    for place, name in enumerate(old):
        if name in new:
            places[place] = new.index(name)
    return boxes.renamed(places)


def _check_classes(
    predicted: Sequence[str], references: References, truths: Mapping[str, Boxes], names: Sequence[str], *, chosen: bool
) -> None:
    """See that the classes of the boxes can have been found; one that is merely spelled otherwise must not score 0.

    Args:
        predicted: the classes that predictions can have.
        references: what is true.
        truths: case → the boxes of the scored classes.
        names: the scored classes.
        chosen: whether somebody has chosen these.

    Raises:
        DataError: none of the scored classes that have boxes can have been found, or some cannot, while the predictions
            have others that the references do not know.
    """
    places = np.concatenate([truth.classes for truth in truths.values()])
    drawn = set(map(names.__getitem__, places.tolist()))
    missing = sorted(drawn.difference(predicted), key=names.index)
    if not missing:
        return
    foreign = sorted(set(predicted).difference(references.categories, drawn))
    if (foreign and not chosen) or not drawn & set(predicted):
        raise DataError(
            f"{references.folder}: expected boxes of classes that the predictions know ({', '.join(predicted)}), found "
            f"'{missing[0]}', which is none of them; call them the same, or choose the classes that are to be scored "
            f"with --labels.{_alike(missing[0], foreign or predicted)}"
        )
    _log.warning(
        "%s: the predictions know no class %s, of which there are boxes, so that each of these counts as 0 in the "
        "means; choose others with --labels",
        references.folder,
        ", ".join(missing),
    )


def _alike(name: str, known: Sequence[str]) -> str:
    """A question for the name that is meant; empty where there is none like it."""
    for other in known:
        if other.casefold() == name.casefold():
            return f" Did you mean '{other}'?"
    return nearest(name, known)


def _check_sizes(predictions: DetectionPredictions, references: References, cases: Sequence[str]) -> None:
    wrong = []
    for case in cases:
        image, annotation = predictions.images[case], references.annotations[case]
        if (image.width, image.height) != (annotation.width, annotation.height):
            wrong.append(case)
    if wrong:
        image, annotation = predictions.images[wrong[0]], references.annotations[wrong[0]]
        sizes = f"{image.width}×{image.height} and {annotation.width}×{annotation.height} px"
        raise DataError(
            f"{len(wrong)} of {len(cases)} images were predicted in another size than they were annotated in: "
            f"{', '.join(wrong)} ({wrong[0]}: {sizes}); predict the data set's own images."
        )


def _thinned(false: np.ndarray, true: np.ndarray, score: np.ndarray) -> Curve:
    """The first point of every sensitivity: the curve is a staircase and nothing is lost."""
    rises = np.diff(true, prepend=-1) > 0
    return Curve(false[rises], true[rises], score[rises])
