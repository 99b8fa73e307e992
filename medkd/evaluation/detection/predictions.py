"""Detections and reference boxes of many images: ``predictions.json``, COCO's files, and the arrays that scoring works
on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.boxes import BoxAnnotation
from medkd.core.errors import DataError
from medkd.core.files import write_json
from medkd.evaluation.entries import Entry

PREDICTIONS_FILE = "predictions.json"
COCO_RESULTS_FILE = "coco_results.json"
COCO_IMAGES_FILE = "coco_images.json"
SCHEMA = 1
_ROUNDED = 0.002  # pixels; a summary holds drawn boxes to the third decimal


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of one image, found or drawn.

    Attributes:
        boxes: ``(n, 4)`` float64: left, top, right, bottom in pixels.
        classes: ``(n,)`` int64, places in the list of categories.
        scores: ``(n,)`` float64 in [0, 1]; ones for boxes that were drawn.
        ignored: of drawn boxes, those around crowds, which are not among the others.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    ignored: Boxes | None = None

    @classmethod
    def of(cls, boxes: Any, classes: Any, scores: Any = None) -> Boxes:
        """From lists, arrays or tensors (on any device); ``scores`` are ones where None."""
        table = _array(boxes, np.float64).reshape(-1, 4)
        found = np.ones(len(table)) if scores is None else _array(scores, np.float64).reshape(-1)
        return cls(table, _array(classes, np.int64).reshape(-1), found)

    def __len__(self) -> int:
        return len(self.boxes)

    def only(self, keep: np.ndarray | slice) -> Boxes:
        """The boxes that a mask ``(n,)``, places or a slice choose, and all crowds."""
        return Boxes(self.boxes[keep], self.classes[keep], self.scores[keep], self.ignored)

    def of_class(self, category: int) -> Boxes:
        """The boxes of a class, and the crowds of it."""
        own = self.only(self.classes == category)
        return own if self.ignored is None else replace(own, ignored=self.ignored.of_class(category))

    def equals(self, other: Boxes) -> bool:
        """Whether both are the same drawn boxes and crowds, as exactly as a summary tells them."""
        if not np.array_equal(self.classes, other.classes):
            return False
        if not np.allclose(self.boxes, other.boxes, rtol=0, atol=_ROUNDED):
            return False
        if self.ignored is None or other.ignored is None:
            return not len(self.ignored or ()) and not len(other.ignored or ())
        return self.ignored.equals(other.ignored)

    def renamed(self, places: np.ndarray) -> Boxes:
        """Boxes and crowds with other numbers for their classes.

        Args:
            places: of each class the new one; those of a negative one are left out.
        """
        moved = replace(self, classes=np.asarray(places, np.int64)[self.classes])
        kept = moved.only(moved.classes >= 0)
        return kept if self.ignored is None else replace(kept, ignored=self.ignored.renamed(places))


@dataclass(frozen=True, eq=False)
class ImagePredictions:
    """The detections of one image, by falling score.

    Attributes:
        file: the image as it was given.
        width: of the upright image in pixels; the boxes are in these pixels.
        height: likewise.
        found: the detections.
        content: a hash of the image's file; empty where nobody said.
    """

    file: str
    width: int
    height: int
    found: Boxes
    content: str = ""


@dataclass(frozen=True, eq=False)
class DetectionPredictions:
    """``predictions.json``: the detections of many images.

    Attributes:
        categories: names of the classes.
        images: case id → what was found, in the order of the case ids.
    """

    categories: tuple[str, ...]
    images: Mapping[str, ImagePredictions]

    def to_json(self) -> dict[str, Any]:
        """The content of ``predictions.json``; coordinates are rounded to 0.01 px and scores to 6 decimals."""
        images = {}
        for case in sorted(self.images):
            images[case] = image_json(self.images[case], self.categories)
        return {"schema": SCHEMA, "categories": list(self.categories), "images": images}

    def save(self, folder: Path) -> Path:
        """Write ``predictions.json``, ``coco_results.json`` and ``coco_images.json`` atomically; returns the first
        one's path.

        ``coco_results.json`` is the list that COCO's tools load as results; ``coco_images.json`` says which image and
        category each id means (``images`` and ``categories`` of a COCO data set).
        """
        results, images = self.to_coco()
        write_json(Path(folder) / COCO_IMAGES_FILE, images)
        write_json(Path(folder) / COCO_RESULTS_FILE, results, indent=None)
        write_json(Path(folder) / PREDICTIONS_FILE, self.to_json(), indent=None)
        return Path(folder) / PREDICTIONS_FILE

    def to_coco(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """COCO's result list, boxes as ``[left, top, width, height]``, and the meaning of its ids, which count from
        1.
        """
        results, heads = [], []
        for number, case in enumerate(sorted(self.images), start=1):
            image = self.images[case]
            head = {"id": number, "file_name": Path(image.file).name, "case": case}
            heads.append({**head, "width": image.width, "height": image.height})
            results += _coco_results(number, image.found)
        names = [{"id": place, "name": name} for place, name in enumerate(self.categories, start=1)]
        return results, {"images": heads, "categories": names}

    @classmethod
    def load(cls, path: Path) -> DetectionPredictions:
        """Read a ``predictions.json``, or the one in a folder.

        Raises:
            DataError: the file is missing, of another form or schema, or a detection names an unknown class or is no
                box.
        """
        path = Path(path)
        if path.is_dir():
            path = path / PREDICTIONS_FILE
        data = Entry.read(path, "predict again")
        data.check_schema(SCHEMA)
        categories = data.texts("categories")
        images = {case: _image_from(entry, categories) for case, entry in data.objects("images")}
        return cls(categories, images)

    def restricted(self, cases: Iterable[str]) -> DetectionPredictions:
        """The predictions of these cases."""
        return DetectionPredictions(self.categories, {case: self.images[case] for case in cases})


def _coco_results(number: int, found: Boxes) -> list[dict[str, Any]]:
    """The detections of the image with this id, as entries of COCO's result list."""
    results = []
    corners = np.round(found.boxes, 2)
    for box, kind, score in zip(corners.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True):
        left, top, right, bottom = box
        sides = [left, top, round(right - left, 2), round(bottom - top, 2)]
        entry = {"image_id": number, "category_id": kind + 1, "bbox": sides}
        results.append({**entry, "score": round(score, 6)})
    return results


def image_json(image: ImagePredictions, categories: Sequence[str]) -> dict[str, Any]:
    """One image's entry of ``predictions.json``."""
    names = [categories[place] for place in image.found.classes]
    content = {"content": image.content} if image.content else {}
    return {
        "file": image.file,
        **content,
        "width": image.width,
        "height": image.height,
        "boxes": np.round(image.found.boxes, 2).tolist(),
        "scores": np.round(image.found.scores, 6).tolist(),
        "classes": names,
    }


def image_from_json(entry: Any, categories: Sequence[str], where: str) -> ImagePredictions:
    """Read one image's entry of ``predictions.json``.

    Raises:
        DataError: a key is missing, a class is unknown, a number is not finite, or the lists differ in length.
    """
    return _image_from(Entry(entry, where, "predict again"), categories)


def _image_from(entry: Entry, categories: Sequence[str]) -> ImagePredictions:
    names, boxes, scores = entry.texts("classes"), entry.numbers("boxes", 4), entry.numbers("scores")
    unknown = sorted(set(names) - set(categories))
    if unknown:
        raise DataError(
            f"{entry.where}: the class '{unknown[0]}' is not among the file's categories {', '.join(categories)}."
        )
    if not len(boxes) == len(names) == len(scores):
        raise DataError(
            f"{entry.where}: expected as many scores and classes as boxes, found {len(scores)} scores and {len(names)} "
            f"classes for {len(boxes)} boxes; predict again."
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise DataError(f"{entry.where}: expected finite coordinates and scores, found NaN or infinity; predict again.")
    places = {name: place for place, name in enumerate(categories)}
    found = Boxes.of(boxes, [places[name] for name in names], scores)
    content = entry.text("content") if "content" in entry else ""
    return ImagePredictions(entry.text("file"), entry.count("width"), entry.count("height"), found, content)


def truth_of(annotation: BoxAnnotation, categories: Sequence[str]) -> Boxes:
    """The reference boxes of an image; see :meth:`medkd.core.boxes.BoxAnnotation.indices` for its error."""
    drawn = Boxes.of(annotation.boxes, annotation.indices(categories))
    if not annotation.ignored:
        return drawn
    return replace(drawn, ignored=Boxes.of(annotation.ignored, annotation.ignored_indices(categories)))


def _array(value: Any, kind: type) -> np.ndarray:
    """Lists, arrays, and tensors wherever they are, without importing torch."""
    value = value.detach().cpu().numpy() if hasattr(value, "detach") else value
    return np.asarray(value, dtype=kind)
