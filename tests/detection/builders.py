"""A small detection data set in the raw layout: bright rectangles on noise, one shade for each category."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import DatasetDescription, training_cases
from medkd.detection.store import DetectionStore, DetectionStoreWriter, source_of_case
from medkd.io.radiographs import write_png

Picture = tuple[np.ndarray, list[tuple[float, ...]], list[int]]


def radiograph(seed: int, width: int, height: int, categories: int = 1, boxes: int = 1) -> Picture:
    """A picture ``(height, width)`` uint8, its boxes in pixels, and their classes."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(60, 8, (height, width))
    found: list[tuple[float, ...]] = []
    classes: list[int] = []
    for number in range(boxes):
        w, h = (int(rng.integers(side // 5, side // 3 + 1)) for side in (width, height))
        left, top = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        kind = (seed + number) % categories
        pixels[top : top + h, left : left + w] = 130 + 110 * (kind + 1) / categories
        found.append((float(left), float(top), float(left + w), float(top + h)))
        classes.append(kind)
    return np.clip(pixels, 0, 255).astype(np.uint8), found, classes


def make_dataset(
    root: Path,
    number: int = 502,
    images: int = 8,
    size: int = 96,
    categories: tuple[str, ...] = ("fracture",),
    *,
    negatives: int = 2,
    patients: bool = False,
) -> Path:
    """Write ``<root>/raw/DatasetNNN_Tiny``: images of ``size`` × ``3/4 size`` pixels, the last ``negatives`` of them
    without boxes.

    Args:
        root: medkd's root.
        number: of the data set.
        images: how many, named ``image_00`` …
        size: width in pixels.
        categories: classes; image ``i`` has one box of class ``i mod K``.
        negatives: images without boxes.
        patients: two images per patient.

    Returns:
        The raw folder.
    """
    folder = root / "raw" / f"Dataset{number:03d}_Tiny"
    height = size * 3 // 4
    for index in range(images):
        case = f"image_{index:02d}"
        pixels, boxes, classes = radiograph(
            index, size, height, len(categories), 0 if index >= images - negatives else 1
        )
        write_png(folder / "imagesTr" / f"{case}_0000.png", pixels)
        BoxAnnotation(width=size, height=height, boxes=tuple(boxes), names=tuple(categories[c] for c in classes)).save(
            folder / "labelsTr" / f"{case}.json"
        )
    known = {f"image_{i:02d}": f"patient_{i // 2}" for i in range(images)} if patients else {}
    description = DatasetDescription.detection(
        ("X-ray",), categories, num_training=images, file_ending=".png", patients=known
    )
    description.save(folder / "dataset.json")
    return folder


def make_store(raw: Path, folder: Path, image_size: int = 640) -> DetectionStore:
    """The store of a raw data set, without a plan."""
    description = DatasetDescription.load(raw / "dataset.json")
    writer = DetectionStoreWriter(folder, description.categories, image_size)
    files = [(case.case, case.images[0], case.label) for case in training_cases(raw, description)]
    for case, image, label in files:
        assert label is not None
        writer.write(case, image, BoxAnnotation.load(label), source_of_case(image, label))
    return writer.finish([case for case, _, _ in files])


class Told:
    """A tracker that remembers the epochs that it was told of."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    def epoch(self, record: Any) -> None:
        """See :meth:`medkd.training.tracking.Tracking.epoch`."""
        self.records.append(record)
