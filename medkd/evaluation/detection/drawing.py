"""Radiographs with boxes drawn on them, large enough to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Bright on grey images and told apart when colour-blind.
COLOURS = ("#ffd166", "#4cc9f0", "#ff6b9d", "#7ae582", "#ff9f1c", "#b892ff", "#a3e4d7", "#e63946")
TRUTH = "#ffffff"
_SHADOW = "#10161c"
_SMALLEST = 640  # pixels of the long side below which an image is enlarged


@dataclass(frozen=True)
class DrawnBox:
    """One box to draw.

    Attributes:
        box: left, top, right, bottom in pixels.
        text: of its tag; none where empty.
        colour: of outline and tag.
    """

    box: tuple[float, ...]
    text: str
    colour: str


def draw_boxes(pixels: np.ndarray, boxes: Sequence[DrawnBox], largest: int | None = None) -> Image.Image:
    """A picture of a radiograph with boxes; the first ones lie on top.

    Args:
        pixels: ``(H, W)`` or ``(H, W, 3)`` uint8.
        boxes: what to draw, most important first.
        largest: the picture's long side in pixels is at most this; None keeps the image's size. Small images are
            enlarged.
    """
    picture = Image.fromarray(pixels).convert("RGB")
    factor = _factor(max(picture.size), largest)
    if factor != 1:
        size = tuple(max(1, round(side * factor)) for side in picture.size)
        picture = picture.resize(size, Image.Resampling.BICUBIC)  # type: ignore[arg-type]
    longest = max(picture.size)
    width, font = max(2, round(longest / 350)), ImageFont.load_default(max(13, round(longest / 48)))
    canvas = ImageDraw.Draw(picture)
    for drawn in reversed(boxes):
        corners = [factor * value for value in drawn.box]
        _outline(canvas, corners, drawn.colour, width, picture.size)
    for drawn in reversed(boxes):
        if drawn.text:
            _tag(canvas, drawn, [factor * value for value in drawn.box], font, width, picture.size)
    return picture


def colour_of(category: int) -> str:
    """The colour of a class by its place."""
    return COLOURS[category % len(COLOURS)]


def _factor(longest: int, largest: int | None) -> float:
    grown = max(1, -(-_SMALLEST // longest))
    return grown if largest is None else min(grown, largest / longest)


def _outline(
    canvas: ImageDraw.ImageDraw, corners: Sequence[float], colour: str, width: int, size: tuple[int, int]
) -> None:
    """A frame with a dark edge on both sides, to be seen on white bone and on black background.

    The box is the frame's inner edge, but for boxes at the picture's border, where the frame stays inside of the
    picture.
    """
    left, top, right, bottom = corners
    edge = max(1, width // 2)
    for grown, shade, thick in ((width + edge, _SHADOW, width + 2 * edge), (width, colour, width)):
        first = max(left - grown, 0), max(top - grown, 0)
        last = min(max(right, left) + grown, size[0] - 1), min(max(bottom, top) + grown, size[1] - 1)
        canvas.rectangle((*first, *last), outline=shade, width=thick)


def _tag(
    canvas: ImageDraw.ImageDraw,
    drawn: DrawnBox,
    corners: Sequence[float],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    width: int,
    size: tuple[int, int],
) -> None:
    """The text on the colour, above the box where there is room, else below, kept inside of the picture."""
    left, top, right, bottom = canvas.textbbox((0, 0), drawn.text, font=font)
    wide, high = right - left + 4 * width, bottom - top + 3 * width
    x = min(max(corners[0] - width, 0), max(size[0] - wide, 0))
    above = corners[1] - width - high
    y = above if above >= 0 else min(corners[3] + width, size[1] - high)
    canvas.rectangle((x, y, x + wide, y + high), fill=drawn.colour)
    canvas.text((x + 2 * width - left, y + 1.5 * width - top), drawn.text, fill=_SHADOW, font=font)
