"""The picture of a radiograph with what was found in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medkd.core.files import atomic_path
from medkd.evaluation.detection.drawing import DrawnBox, colour_of, draw_boxes
from medkd.evaluation.detection.predictions import Boxes

PICTURE_SCORE = 0.25
"""Lowest score that is drawn unless told otherwise."""


def picture_path(outputs: Path, case: str) -> Path:
    """``pictures/CASE.jpg`` below the folder of the results."""
    return outputs / "pictures" / f"{case}.jpg"


def write_picture(
    path: Path, pixels: np.ndarray, found: Boxes, categories: Sequence[str], score: float = PICTURE_SCORE
) -> None:
    """Write a radiograph with the boxes that reach a score, each with its class and score.

    Args:
        path: the picture, written atomically.
        pixels: ``(H, W)`` or ``(H, W, 3)`` uint8.
        found: detections in its pixels.
        categories: names of the classes.
        score: lowest one that is drawn.
    """
    with atomic_path(path) as temporary:
        drawn_picture(pixels, found, categories, score).save(temporary, format="JPEG", quality=92)


def drawn_picture(
    pixels: np.ndarray,
    found: Boxes,
    categories: Sequence[str],
    score: float = PICTURE_SCORE,
    largest: int | None = None,
) -> Image.Image:
    """A radiograph with the boxes that reach a score; arguments as for :func:`write_picture`, ``largest`` as for
    :func:`~medkd.evaluation.detection.drawing.draw_boxes`.
    """
    shown = found.only(np.flatnonzero(found.scores >= score))
    boxes = []
    for box, kind, value in zip(shown.boxes.tolist(), shown.classes, shown.scores, strict=True):
        boxes.append(DrawnBox(tuple(box), f"{categories[kind]} {value:.2f}", colour_of(int(kind))))
    return draw_boxes(pixels, boxes, largest)
