"""Small pictures of a case: a radiograph with its boxes, or the fullest slice of a volume with its label map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import CaseFiles
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.io.radiographs import read_radiograph, to_eight_bit
from medkd.io.volumes import read_label, read_volume

Colour = tuple[int, int, int]

PALETTE: tuple[Colour, ...] = (
    (255, 176, 0),
    (0, 190, 210),
    (230, 80, 120),
    (120, 200, 60),
    (150, 120, 255),
    (255, 120, 50),
    (90, 160, 255),
    (240, 220, 80),
    (190, 110, 200),
    (60, 200, 150),
)
"""Told apart on grey, also with the common colour blindnesses (hue and lightness both differ)."""

_BLACK: Colour = (0, 0, 0)
_OPACITY = 0.45
_SMALL = 0.22  # of the picture's width: smaller boxes are shown enlarged as well
_INSET = 0.36
_CONTEXT = 2.2  # how much more than the box the enlargement shows
_AIR = -900  # below this a volume is taken for CT in HU


def colour(index: int) -> Colour:
    """The colour of the class or label number ``index``, counted from 0."""
    return PALETTE[index % len(PALETTE)]


def radiograph_picture(image: Path, label: Path | None, categories: Sequence[str], side: int) -> Image.Image:
    """A radiograph with its boxes within ``side`` × ``side`` pixels; small boxes are enlarged in a corner.

    Raises:
        DataError: a file is unreadable.
    """
    pixels, _ = to_eight_bit(read_radiograph(image).pixels)
    full = Image.fromarray(pixels).convert("RGB")
    scale = side / max(full.size)
    picture = full.resize(_scaled(full.size, scale), Image.Resampling.LANCZOS)
    annotation = BoxAnnotation(width=full.width, height=full.height)
    if label:
        annotation = BoxAnnotation.load(label)
    numbers = {name: number for number, name in enumerate(categories)}
    colours = [colour(numbers.get(name, 2)) for name in annotation.names]
    draw = ImageDraw.Draw(picture)
    for box, shade in zip(annotation.boxes, colours, strict=True):
        _outline(draw, np.multiply(box, scale).tolist(), shade)
    canvas, corner = _centred(picture, side)
    if annotation.boxes:
        areas = [_area(box) for box in annotation.boxes]
        first = areas.index(min(areas))
        box = annotation.boxes[first]
        if _length(box) * scale < _SMALL * side:
            centre = np.add(np.multiply(_middle(box), scale), corner).tolist()
            _inset(canvas, full, box, colours[first], centre)
    return canvas


def volume_picture(files: CaseFiles, side: int) -> Image.Image:
    """The axial slice with most of the label map (the middle one without), front up, the patient's right on the left.

    Raises:
        DataError: a file is unreadable.
    """
    volume = read_volume(files.images[0], None)
    image, spacing = _upright(volume.array, volume.geometry)
    label = np.zeros(image.shape, np.int16)
    if files.label is not None:
        label = _upright(read_label(files.label).array, volume.geometry)[0]
        if label.shape != image.shape:
            raise DataError(
                f"{files.label}: expected the grid of {files.images[0]}, found {label.shape}; see the verification "
                "report."
            )
    marked = np.count_nonzero(label, axis=(0, 1))
    place = int(marked.argmax()) if marked.any() else image.shape[2] // 2
    grey = _window(image, place)
    highest = max(int(label.max()), 1)
    colours = np.array([_BLACK, *map(colour, range(highest))], np.float32)
    painted = np.maximum(label[..., place], 0)
    mask = (painted > 0)[..., None] * np.float32(_OPACITY)
    pixels = (grey[..., None] * (1 - mask) + colours[painted] * mask).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(pixels[::-1, ::-1].swapaxes(0, 1)))
    physical = (picture.width * spacing[0], picture.height * spacing[1])
    scale = side / max(physical)
    picture = picture.resize(_scaled(physical, scale), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (side, side), _BLACK)
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return canvas


def _scaled(size: tuple[float, float], scale: float) -> tuple[int, int]:
    """A size in whole pixels, at least one."""
    width, height = size
    return max(1, round(width * scale)), max(1, round(height * scale))


def _centred(picture: Image.Image, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """A black square with a picture in its middle, and where the picture's corner is."""
    canvas = Image.new("RGB", (side, side), _BLACK)
    corner = ((side - picture.width) // 2, (side - picture.height) // 2)
    canvas.paste(picture, corner)
    return canvas, corner


def _upright(array: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, tuple[float, ...]]:
    """An array ``(z, y, x)`` as ``(x, y, z)`` with the axes towards right, front and head (RAS+), and the spacing in
    that order.
    """
    from nibabel.orientations import apply_orientation, io_orientation

    orientation = io_orientation(geometry.matrix)
    lengths = tuple(reversed(geometry.spacing))
    spacing = [1.0, 1.0, 1.0]
    for axis, (target, _) in enumerate(orientation):
        spacing[int(target)] = lengths[axis]
    return np.asarray(apply_orientation(array.T, orientation)), tuple(spacing)


def _window(image: np.ndarray, place: int) -> np.ndarray:
    """Grey values 0 to 255: soft tissue for CT, else the 0.5th to 99.5th percentile of the slice."""
    chosen = image[..., place]
    steps = [max(1, length // 32) for length in image.shape[:2]]
    thinned = image[:: steps[0], :: steps[1]]
    if float(thinned.min()) < _AIR:
        low, high = -160.0, 240.0
    else:
        low, high = map(float, np.percentile(chosen, (0.5, 99.5)))
    scale = 255 / max(high - low, 1e-6)
    return np.clip((chosen.astype(np.float32) - low) * scale, 0, 255)


def _outline(draw: ImageDraw.ImageDraw, box: Sequence[float], shade: Colour, width: int = 2) -> None:
    """A frame just outside the box, with a dark edge, so that it covers nothing and is seen on white bone too."""
    for far, line, paint in ((width + 1, 1, _BLACK), (width, width, shade)):
        left, top, right, bottom = box
        frame = (left - far, top - far, right + far, bottom + far)
        draw.rectangle(frame, outline=paint, width=line)


def _inset(
    canvas: Image.Image, full: Image.Image, box: Sequence[float], shade: Colour, centre: Sequence[float]
) -> None:
    """The box enlarged, in the corner farthest from it."""
    side = round(canvas.width * _INSET)
    half = _length(box) * _CONTEXT / 2
    x, y = _middle(box)
    region = (x - half, y - half, x + half, y + half)
    inset = full.transform((side, side), Image.Transform.EXTENT, region, Image.Resampling.BICUBIC)
    scale = side / (2 * half)
    origin = region[:2] * 2
    enlarged = (np.subtract(box, origin) * scale).tolist()
    _outline(ImageDraw.Draw(inset), enlarged, shade, 1)
    left = 0 if centre[0] > canvas.width / 2 else canvas.width - side
    top = 0 if centre[1] > canvas.height / 2 else canvas.height - side
    canvas.paste(inset, (left, top))
    frame = (left, top, left + side - 1, top + side - 1)
    ImageDraw.Draw(canvas).rectangle(frame, outline=shade, width=1)


def _length(box: Sequence[float]) -> float:
    """The longer side."""
    left, top, right, bottom = box
    return max(right - left, bottom - top)


def _middle(box: Sequence[float]) -> tuple[float, float]:
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
