"""A radiograph on the square that a detector sees, and boxes back from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from medkd.detection.store import stored_size

PADDING = 114 / 255
"""Grey of the border, ultralytics' value, so that its detectors see what they were trained on."""


@dataclass(frozen=True)
class Letterbox:
    """Where an image lies on the square.

    Attributes:
        scale: pixels of the square per pixel of the image, along x and y.
        left: columns of the border before the image.
        top: rows above it.
        width: of the image before, in pixels.
        height: likewise.
    """

    scale: tuple[float, float]
    left: int
    top: int
    width: int
    height: int

    def back(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes ``(n, 4)`` on the square → in pixels of the image, clipped to it."""
        moved = (np.asarray(boxes, np.float64).reshape(-1, 4) - [self.left, self.top] * 2) / (self.scale * 2)
        return np.clip(moved, 0, [self.width, self.height] * 2)

    def forth(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes ``(n, 4)`` of the image → on the square."""
        return np.asarray(boxes, np.float64).reshape(-1, 4) * (self.scale * 2) + [self.left, self.top] * 2


def shrink(pixels: np.ndarray, image_size: int) -> np.ndarray:
    """An image as the store would hold it: its long side at most ``image_size``, by the mean over each new pixel's
    area.

    Args:
        pixels: ``(H, W)`` or ``(H, W, 3)`` uint8.
        image_size: side of the square.
    """
    size = stored_size((pixels.shape[1], pixels.shape[0]), image_size)
    if size == (pixels.shape[1], pixels.shape[0]):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def scaled(shape: tuple[int, int], sides: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of an image that is as large as a long and a short side allow; its ratio is kept to a pixel.

    >>> scaled((480, 640), (1333, 800))
    (800, 1067)
    >>> scaled((300, 900), (1333, 800))
    (444, 1333)
    """
    factor = min(sides[0] / max(shape), sides[1] / min(shape))
    rows, columns = (max(1, round(side * factor)) for side in shape)
    return rows, columns


def letterbox(
    pixels: np.ndarray, size: int, original: tuple[int, int] | None = None, sides: tuple[int, int] | None = None
) -> tuple[Tensor, Letterbox]:
    """Scale an image so that its long side fills the square, or as far as ``sides`` let it, and centre it on grey.

    Args:
        pixels: ``(H, W, 3)`` or ``(H, W)`` uint8, raw or as stored.
        size: side S of the square in pixels.
        original: (width, height) that boxes shall be given back in, where ``pixels`` is a smaller copy.
        sides: see :class:`~medkd.detection.base.DetectorSpec`.

    Returns:
        ``(3, S, S)`` float32 in [0, 1], and where the image lies on it.
    """
    small = shrink(pixels, size)
    height, width = small.shape[:2]
    rows, columns = _rows_and_columns((width, height), size, sides)
    channels = small[..., None] if small.ndim == 2 else small
    image = torch.from_numpy(channels.transpose(2, 0, 1).copy()).float() / 255
    if (rows, columns) != (height, width):
        image = functional.interpolate(image[None], (rows, columns), mode="bilinear", align_corners=False)[0].clamp_(
            0, 1
        )
    place = placed((pixels.shape[1], pixels.shape[0]), size, original, sides)
    square = torch.full((3, size, size), PADDING)
    square[:, place.top : place.top + rows, place.left : place.left + columns] = image
    return square, place


def placed(
    pixels: tuple[int, int], size: int, original: tuple[int, int] | None = None, sides: tuple[int, int] | None = None
) -> Letterbox:
    """Where :func:`letterbox` puts an image of so many pixels (width, height); the other arguments are those there."""
    rows, columns = _rows_and_columns(stored_size(pixels, size), size, sides)
    whole = original or pixels
    scale = (columns / whole[0], rows / whole[1])
    return Letterbox(scale, (size - columns) // 2, (size - rows) // 2, *whole)


def _rows_and_columns(pixels: tuple[int, int], size: int, sides: tuple[int, int] | None) -> tuple[int, int]:
    """How large an image of so many pixels (width, height) becomes on the square."""
    long, short = sides or (size, size)
    return scaled((pixels[1], pixels[0]), (min(long, size), min(short, size)))
