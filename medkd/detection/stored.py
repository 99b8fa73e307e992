"""What the index of a store of radiographs says of each image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from medkd.core.errors import DataError

_ANEW = "delete the file and run medkd_plan_and_preprocess again"


@dataclass(frozen=True, kw_only=True)
class StoredCase:
    """One image as it lies in the store.

    Attributes:
        width: of the stored image in pixels.
        height: likewise.
        original_width: of the raw image in pixels.
        original_height: likewise.
        boxes: ``(x_min, y_min, x_max, y_max)`` each, in pixels of the stored image; none for a negative.
        classes: the class of each box, its place in the index' ``categories``.
        ignored: boxes around crowds, likewise; see :class:`~medkd.core.boxes.BoxAnnotation`.
        ignored_classes: the class of each.
        source: sizes and times of change of the raw files that it was made of.
        annotated: False for an image of which nobody has said what it shows; a negative is annotated as empty.
        scaling: how an image of more than 8 bits was brought to 8; empty for others, and in stores of older versions.
        pixels: fingerprint of the raw image's pixels, to find equal images; empty in stores of older versions.
    """

    width: int
    height: int
    original_width: int
    original_height: int
    boxes: tuple[tuple[float, ...], ...] = ()
    classes: tuple[int, ...] = ()
    ignored: tuple[tuple[float, ...], ...] = ()
    ignored_classes: tuple[int, ...] = ()
    source: str = ""
    annotated: bool = True
    scaling: str = ""
    pixels: str = ""

    def check(self, categories: int, where: str) -> None:
        """See that every box has four coordinates and one of so many categories.

        Raises:
            DataError: one has not.
        """
        for box in (*self.boxes, *self.ignored):
            if len(box) != 4:
                raise DataError(f"{where}: expected boxes of four coordinates, found {list(box)}; {_ANEW}.")
        for boxes, classes in ((self.boxes, self.classes), (self.ignored, self.ignored_classes)):
            if len(classes) != len(boxes) or not set(classes) <= set(range(categories)):
                raise DataError(
                    f"{where}: expected one of {categories} classes per box, found {list(classes)} for {len(boxes)} "
                    f"boxes; {_ANEW}."
                )


@dataclass(frozen=True)
class StoreIndex:
    """``cases.json``: the categories in order, and all cases by their id."""

    categories: tuple[str, ...]
    cases: Mapping[str, StoredCase] = field(default_factory=dict)
    schema: int = 1
