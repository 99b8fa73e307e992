"""``summary.json`` of a detection data set: every score with its interval, FROC curves, and the boxes it was scored
against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.errors import DataError
from medkd.core.files import write_json
from medkd.evaluation.detection.coco import COCO_METRICS
from medkd.evaluation.detection.matching import Criterion
from medkd.evaluation.detection.metrics import RATES, Key, rate_key
from medkd.evaluation.detection.predictions import Boxes
from medkd.evaluation.entries import Entry
from medkd.evaluation.statistics import LEVEL, UNDEFINED, Interval, count_patients, finite, interval_json
from medkd.evaluation.table import counted_cases, format_interval, text_table

SCHEMA = 1
TEXT = "text"
_ALL = "all classes"


@dataclass(frozen=True, eq=False)
class Curve:
    """A FROC curve: the points at which the sensitivity ``(n,)`` rises, and false positives per image and score
    there.
    """

    false_positives: np.ndarray
    sensitivity: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class Rules:
    """How detections were scored.

    Attributes:
        excluded: classes left out of the second mean and of FROC over all classes; None leaves ``text`` out, burnt-in
            letters (GRAZPEDWRI-DX) that say nothing about the patient, where there are other classes.
        threshold: IoU of a hit for FROC.
        criterion: ``iou`` or ``centre``.
    """

    excluded: tuple[str, ...] | None = None
    threshold: float = 0.5
    criterion: Criterion = "iou"

    def resolved(self, categories: Sequence[str]) -> Rules:
        """The rules with the excluded classes spelled out.

        Raises:
            DataError: an excluded class is unknown, or all are excluded.
        """
        if self.excluded is None:
            return replace(self, excluded=(TEXT,) if TEXT in categories and len(categories) > 1 else ())
        unknown = [name for name in self.excluded if name not in categories]
        if unknown or set(categories) <= set(self.excluded):
            raise DataError(
                f"Expected some of the classes {', '.join(categories)} to exclude, found {', '.join(self.excluded)}."
            )
        return self


def rules_of(hit: str, excluded: tuple[str, ...] | None = None) -> Rules:
    """Rules from the command line: ``hit`` is an IoU or ``centre``.

    Raises:
        DataError: it is neither.
    """
    if hit in ("centre", "center"):
        return Rules(excluded, criterion="centre")
    try:
        threshold = float(hit)
    except ValueError:
        threshold = 0.0
    if not 0 < threshold <= 1:
        raise DataError(f"A hit is an IoU above 0 up to 1, or 'centre'; found '{hit}'.")
    return Rules(excluded, threshold)


@dataclass(frozen=True, eq=False, kw_only=True)
class DetectionSummary:
    """The scores of the detections in a set of images.

    Attributes:
        categories: names of the classes.
        truths: case id → reference boxes.
        values: (class or empty, metric) → value with its interval.
        curves: class (empty for all together) → FROC curve.
        rules: how they were scored.
        patients: case id → patient, where known.
        missing: cases without predictions (allowed by flag, counted as empty).
        extra: further content of the file, kept as it is.
    """

    categories: tuple[str, ...]
    truths: Mapping[str, Boxes]
    values: Mapping[Key, Interval]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    patients: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def value(self, metric: str, category: str = "") -> Interval:
        """A metric of a class, or of all where none is given; undefined where it was not computed."""
        return self.values.get((category, metric), UNDEFINED)

    def boxes(self, category: str | None = None) -> int:
        """How many reference boxes there are."""
        if category is None:
            return sum(len(truth) for truth in self.truths.values())
        place = self.categories.index(category)
        number = 0
        for truth in self.truths.values():
            number += int((truth.classes == place).sum())
        return number

    @property
    def skipped(self) -> tuple[str, ...]:
        """Classes without a reference box, which no mean counts."""
        return tuple(name for name in self.categories if not self.boxes(name))

    def metrics(self, category: str = "") -> list[str]:
        """The metrics there are of a class, or of all, in the file's order."""
        return [metric for name, metric in self.values if name == category]

    def to_json(self) -> dict[str, Any]:
        """The content of ``summary.json``; undefined values are null."""
        rules = {
            "excluded": list(self.rules.excluded or ()),
            "threshold": self.rules.threshold,
            "criterion": self.rules.criterion,
        }
        return {
            **self.extra,
            "schema": SCHEMA,
            "task": "detection",
            "definitions": definitions(self.rules),
            "rules": rules,
            "confidence_level": LEVEL,
            **self._counts_json(),
            "skipped_classes": list(self.skipped),
            "missing_predictions": list(self.missing),
            "mean": self._values_json(""),
            "classes": {name: self._class_json(name) for name in self.categories},
            "froc": {name or _ALL: _curve_json(curve) for name, curve in self.curves.items()},
            "cases": {case: self._case_json(case) for case in sorted(self.truths)},
        }

    def _counts_json(self) -> dict[str, int | None]:
        with_boxes = [case for case, truth in self.truths.items() if len(truth)]
        return {
            "images": len(self.truths),
            "images_with_boxes": len(with_boxes),
            "boxes": self.boxes(),
            "patients": count_patients(list(self.truths), self.patients),
        }

    def _values_json(self, category: str) -> dict[str, Any]:
        return {metric: interval_json(self.value(metric, category)) for metric in self.metrics(category)}

    def _class_json(self, category: str) -> dict[str, Any]:
        return {"boxes": self.boxes(category), **self._values_json(category)}

    def _case_json(self, case: str) -> dict[str, Any]:
        truth = self.truths[case]
        names = [self.categories[place] for place in truth.classes]
        entry = {"boxes": np.round(truth.boxes, 3).tolist(), "classes": names}
        if truth.ignored is not None:
            entry["ignored"] = np.round(truth.ignored.boxes, 3).tolist()
            entry["ignored_classes"] = [self.categories[place] for place in truth.ignored.classes]
        if case in self.patients:
            entry["patient"] = self.patients[case]
        return entry

    def save(self, path: Path) -> None:
        """Write ``summary.json`` atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> DetectionSummary:
        """Read a ``summary.json`` of a detection data set.

        Raises:
            DataError: the file is missing, damaged, of another schema, or not of a detection data set.
        """
        data = Entry.read(path)
        if data.values.get("task") != "detection":
            raise DataError(f"{path} is not the summary of a detection data set; evaluate again with medkd_evaluate.")
        data.check_schema(SCHEMA)
        return _from_json(data)


def definitions(rules: Rules) -> dict[str, str]:
    """In words, how every number is computed."""
    hit = f"IoU ≥ {rules.threshold:g}" if rules.criterion == "iou" else "the detection's centre lies in the box"
    apart = f", without {', '.join(rules.excluded)}" if rules.excluded else ""
    return {
        "AP": "COCO's average precision: mean over IoU 0.50:0.95 and the classes with reference boxes, at most 100 "
        "detections per class and image (pycocotools)",
        "AP50, AP75": "the same at IoU 0.50 and 0.75",
        "small, medium, large": "boxes of less than 32², up to 96², and more pixels of the original image",
        "AR@1, 10, 100": "highest recall with that many detections per class and image, mean over IoU 0.50:0.95",
        "S@R": f"FROC: share of the reference boxes found at R false positives per image, a hit being {hit} and the "
        f"right class{apart}; further detections of a found box count as neither",
        "AUC": "area under the ROC curve of the highest score in an image, images with a box against images without"
        f"{apart}; images with boxes to be ignored alone are neither",
        "ignored": "a detection of which as much as a hit needs lies in a box to be ignored (a crowd, iscrowd) is "
        "neither right nor wrong (pycocotools)",
        "skipped": "classes without a reference box have no score and no part in the means",
        "interval": "95 % bootstrap percentile interval over patients where they are known, else over images",
    }


def summary_text(summary: DetectionSummary) -> str:
    """One line per class and one for their mean, as a plain-text table for the terminal."""
    metrics = ("AP", "AP50", "AP75", rate_key(1), "AUC")

    def shown(metric: str, name: str = "") -> str:
        return format_interval(summary.value(metric, name), 3)

    def row(name: str) -> list[str]:
        count = summary.boxes(name or None)
        scores = [shown(metric, name) for metric in metrics]
        return [name or _ALL, str(count), *scores]

    rows = [row(name) for name in summary.categories if name not in summary.skipped]
    lines = text_table(["class", "boxes", *metrics], rows, row(""))
    froc = ", ".join(f"{rate:g}: {shown(rate_key(rate))}" for rate in RATES)
    lines.append(f"sensitivity at false positives per image: {froc}")
    for metric in summary.metrics():
        if metric.startswith("AP without"):
            lines.append(f"{metric}: {shown(metric)}")
    if summary.skipped:
        lines.append(f"classes without a reference box, not counted: {', '.join(summary.skipped)}")
    unit = "patients" if summary.patients else "images"
    counted = counted_cases(len(summary.truths), count_patients(list(summary.truths), summary.patients), "image")
    lines.append(f"{counted}; mean [95 % interval over {unit}]; S@1 is the sensitivity at 1 false positive per image")
    return "\n".join(lines)


def ordered(values: Mapping[Key, Interval]) -> dict[Key, Interval]:
    """Values in the order in which people look for them: COCO's, then FROC, then the rest."""
    first = [*COCO_METRICS, *map(rate_key, RATES)]

    def place(key: Key) -> int:
        _, metric = key
        return first.index(metric) if metric in first else len(first)

    return {key: values[key] for key in sorted(values, key=place)}


def _curve_json(curve: Curve) -> dict[str, list[float | None]]:
    return {
        "false_positives_per_image": np.round(curve.false_positives, 6).tolist(),
        "sensitivity": np.round(curve.sensitivity, 6).tolist(),
        "score": [finite(score) for score in curve.score.tolist()],
    }


def _from_json(data: Entry) -> DetectionSummary:
    values = _values("", data.object("mean"))
    categories = []
    for name, entry in data.objects("classes"):
        categories.append(name)
        values |= _values(name, entry)
    truths, patients = {}, {}
    for case, entry in data.objects("cases"):
        truths[case] = _truth(entry, categories)
        if "patient" in entry:
            patients[case] = entry.text("patient")
    curves = {}
    for name, entry in data.objects("froc"):
        curves["" if name == _ALL else name] = _curve(entry)
    own = DetectionSummary(categories=tuple(categories), truths={}, values={}).to_json()
    return DetectionSummary(
        categories=tuple(categories),
        truths=truths,
        values=values,
        curves=curves,
        rules=_rules(data.object("rules"), categories),
        patients=patients,
        missing=data.texts("missing_predictions"),
        extra={key: value for key, value in data.values.items() if key not in own},
    )


def _values(category: str, entry: Entry) -> dict[Key, Interval]:
    """The intervals of a class, or of all where its name is empty."""
    metrics = [name for name in entry.values if name != "boxes" or not category]
    return {(category, metric): entry.interval(metric) for metric in metrics}


def _truth(entry: Entry, categories: Sequence[str]) -> Boxes:
    drawn = _boxes(entry, "boxes", "classes", categories)
    if "ignored" not in entry:
        return drawn
    return replace(drawn, ignored=_boxes(entry, "ignored", "ignored_classes", categories))


def _boxes(entry: Entry, key: str, key_of_classes: str, categories: Sequence[str]) -> Boxes:
    boxes, names = entry.numbers(key, 4), entry.texts(key_of_classes)
    _check_known(entry, key_of_classes, names, categories)
    if len(names) != len(boxes) or not np.isfinite(boxes).all():
        entry.fail(f"{entry.where}: {key}", f"one class for each of {len(boxes)} finite boxes", len(names))
    return Boxes.of(boxes, [categories.index(name) for name in names])


def _check_known(entry: Entry, key: str, names: Sequence[str], categories: Sequence[str]) -> None:
    for name in names:
        if name not in categories:
            entry.fail(f"{entry.where}: {key}", f"classes among {', '.join(categories)}", name)


def _rules(entry: Entry, categories: Sequence[str]) -> Rules:
    threshold = entry.number("threshold")
    if threshold is None or not 0 < threshold <= 1:
        entry.fail(f"{entry.where}: threshold", "an IoU above 0 and at most 1", threshold)
    excluded = entry.texts("excluded")
    _check_known(entry, "excluded", excluded, categories)
    if entry.choice("criterion", "iou", "centre") == "centre":
        return Rules(excluded, threshold, "centre")
    return Rules(excluded, threshold, "iou")


def _curve(entry: Entry) -> Curve:
    false, sensitivity, score = map(entry.numbers, ("false_positives_per_image", "sensitivity", "score"))
    if not len(false) == len(sensitivity) == len(score):
        entry.fail(entry.where, "three lists of one length", len(false))
    return Curve(false, sensitivity, score)
