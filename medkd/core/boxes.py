"""Boxes drawn on a radiograph: ``labelsTr/CASE.json`` of a detection data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medkd.core.errors import DataError
from medkd.core.serial import load, save

if TYPE_CHECKING:
    import numpy as np

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")
"""What an image of a detection data set may be called; one data set may hold several of them."""

COLOURED = (".png", ".bmp", ".tif", ".tiff")
"""Endings of pictures to be segmented, of which one file may hold several channels."""

LABEL_ENDING = ".json"
"""Of the annotation of a case."""


@dataclass(frozen=True, kw_only=True)
class BoxAnnotation:
    """All boxes of one image; an image without boxes is a negative.

    Coordinates are continuous pixels: the top left corner of the image is (0, 0), its bottom right corner (width,
    height).

    Attributes:
        width: of the image as it lies in the data set, in pixels.
        height: likewise.
        boxes: ``(x_min, y_min, x_max, y_max)`` each.
        names: the class of each box; one of the data set's ``categories``.
        ignored: boxes around crowds, of which nobody counts the members: they are not trained on, and what is found in
            them is neither right nor wrong.
        ignored_names: the class of each.
        window: for an image that was brought from 16 to 8 bits, the source intensities that became 0 and 255.
    """

    width: int
    height: int
    boxes: tuple[tuple[float, ...], ...] = ()
    names: tuple[str, ...] = ()
    ignored: tuple[tuple[float, ...], ...] = ()
    ignored_names: tuple[str, ...] = ()
    window: tuple[float, ...] | None = None
    schema: int = 1

    @classmethod
    def load(cls, path: Path) -> BoxAnnotation:
        """Read a ``CASE.json``.

        Raises:
            DataError: the file is missing, of another form, or a box has not four finite coordinates and a name.
        """
        annotation = load(cls, path)
        for boxes, names in ((annotation.boxes, annotation.names), (annotation.ignored, annotation.ignored_names)):
            if len(boxes) != len(names):
                raise DataError(f"{path}: expected one name per box, found {len(names)} names for {len(boxes)} boxes.")
        for box in (*annotation.boxes, *annotation.ignored):
            if len(box) != 4 or not all(map(math.isfinite, box)):
                raise DataError(f"{path}: expected boxes as [x_min, y_min, x_max, y_max] in pixels, found {list(box)}.")
        return annotation

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        save(path, self)

    def array(self) -> np.ndarray:
        """The boxes as ``(n, 4)`` float32; ``(0, 4)`` for a negative."""
        import numpy as np  # not needed to read a description, which commands do before anything else

        return np.array(self.boxes, dtype=np.float32).reshape(-1, 4)

    def indices(self, categories: Sequence[str]) -> np.ndarray:
        """The class of each box as its place in ``categories``, ``(n,)`` int64.

        Raises:
            DataError: a box has a class that is not in ``categories``.
        """
        return _places(self.names, categories)

    def ignored_indices(self, categories: Sequence[str]) -> np.ndarray:
        """The same of the boxes that are ignored."""
        return _places(self.ignored_names, categories)


def _places(names: Sequence[str], categories: Sequence[str]) -> np.ndarray:
    import numpy as np

    unknown = sorted(set(names) - set(categories))
    if unknown:
        raise DataError(
            f"Expected boxes of the classes {', '.join(categories)}, found '{unknown[0]}'; add it to 'categories'."
        )
    places = {name: place for place, name in enumerate(categories)}
    return np.array([places[name] for name in names], dtype=np.int64)


def box_faults(box: Sequence[float], width: int, height: int, tolerance: float = 1e-3) -> str | None:
    """Why a box cannot be used as it is: outside of the image or without area; None for a sound one."""
    left, top, right, bottom = box
    if not all(map(math.isfinite, box)):
        return "a coordinate that is no number"
    if right - left <= 0 or bottom - top <= 0:
        return "no area"
    before = min(left, top) < -tolerance
    behind = right > width + tolerance or bottom > height + tolerance
    if before or behind:
        return f"a part outside of the image of {width}×{height} px"
    return None
