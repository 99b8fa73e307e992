"""Radiographs as PNG or JPEG files: 8 bit, upright and whole, or brought to that without loss.

What viewers do silently and libraries do not agree on is done here once: the EXIF orientation is applied, more than 8
bits are scaled by the intensities that occur (the high byte alone would blacken a 12-bit image, clipping would whiten
it), and a JPEG whose last bytes are missing is read as far as it goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from medkd.core.errors import DataError
from medkd.core.files import atomic_path, check_file

Scaling = Literal["percentile", "range"]
SCALING = "scaling"
"""Under ``"medkd"`` in ``dataset.json``: how images of more than 8 bits were brought to 8."""

_WIDTH, _HEIGHT, _PHOTOMETRIC, _ORIENTATION = 256, 257, 262, 274  # TIFF tags, the last one of EXIF as well
_WHITE_IS_ZERO = 0
_INVERSE = {6: 8, 8: 6}  # of an orientation; the others are their own
_END_OF_JPEG = b"\xff\xd9"
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM", "GIF", "WEBP", "JPEG2000")  # none of them starts a program
_TAIL = (0.05, 99.95)  # percent; a few burnt-in letters or dead pixels must not decide about the contrast of the bone
_ENDINGS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg"}
_WIDE_MODES = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}


@dataclass(frozen=True, kw_only=True)
class Radiograph:
    """An image file, decoded.

    Attributes:
        pixels: ``(H, W)`` or ``(H, W, 3)``; uint8, or uint16, int32 or float32 where the file holds more than 8 bits.
        orientation: EXIF orientation of the file, 1 for upright; applied to ``pixels`` unless reading was told not to.
        stored_size: (width, height) before the orientation is applied.
        truncated: the end of the JPEG is missing.
        lost: share of the pixels that are missing with it; they are black.
        ending: what the file's contents are, ``.png`` or ``.jpg``; empty for another format.
        plain: 8 bit, one or three channels, upright, whole, PNG or JPEG: every reader sees these very pixels in the
            file.
    """

    pixels: np.ndarray
    orientation: int
    stored_size: tuple[int, int]
    truncated: bool
    ending: str
    plain: bool
    lost: float = 0.0

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of :attr:`pixels`."""
        return self.pixels.shape[1], self.pixels.shape[0]


def read_radiograph(path: Path, *, upright: bool = True) -> Radiograph:
    """Read an image file.

    Args:
        path: PNG, JPEG, or any other format that Pillow reads.
        upright: apply the EXIF orientation, as viewers and OpenCV do; Pillow itself does so for TIFFs only.

    Raises:
        DataError: the file is missing, empty, no image, or damaged beyond a missing end.
    """
    check_file(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    try:
        return _decode(path, content, upright)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError) as error:
        reason = str(error).replace("<_io.BytesIO object at", "<").rstrip(".")
        if not content:
            reason = "it is empty"
        elif isinstance(error, UnidentifiedImageError):
            reason = "it is no image in a known format"
        raise DataError(f"Cannot read the radiograph {path}: {reason}; export or download it again.") from error


def radiograph_size(path: Path) -> tuple[int, int]:
    """(width, height) as displayed, from the header alone.

    Raises:
        DataError: the file is missing or no image.
    """
    check_file(path)
    try:
        with Image.open(path, formats=_formats()) as image:
            width, height = image.size
            if isinstance(image, TiffImageFile):  # some versions of Pillow have swapped its size by now, others not
                width, height = int(image.tag_v2[_WIDTH]), int(image.tag_v2[_HEIGHT])
            on_its_side = _orientation(image) in (5, 6, 7, 8)
            return (height, width) if on_its_side else (width, height)
    except (OSError, SyntaxError, ValueError, KeyError, Image.DecompressionBombError) as error:
        raise DataError(f"Cannot read the radiograph {path}: {error}; export or download it again.") from error


def to_eight_bit(pixels: np.ndarray, scaling: Scaling = "percentile") -> tuple[np.ndarray, tuple[float, float]]:
    """Scale pixels of more than 8 bits to uint8.

    ``v -> round(255 (v - low) / (high - low))``, clipped to 0..255. An image whose values fit into 0..255 is not
    stretched.

    Args:
        pixels: ``(H, W)`` or ``(H, W, 3)``; colours share one window.
        scaling: ``percentile``: low and high are the 0.05th and 99.95th percentile; ``range``: 0 (or the lowest value,
            if negative) and the highest value.

    Returns:
        The uint8 pixels, and (low, high).

    Raises:
        DataError: a value is not finite.
    """
    if pixels.dtype == np.uint8:
        return pixels, (0.0, 255.0)
    if not np.isfinite(pixels).all():
        raise DataError("Expected finite intensities, found NaN or infinity.")
    lowest, highest = float(pixels.min()), float(pixels.max())
    integers = pixels.dtype.kind in "iu"
    if integers and lowest >= 0 and highest <= 255:
        return pixels.astype(np.uint8), (0.0, 255.0)
    low, high = min(lowest, 0.0), highest
    if scaling == "percentile":
        low, high = np.percentile(pixels, _TAIL).tolist()
    if high <= low:  # all but a few pixels are equal
        low, high = lowest, highest
    if high <= low:
        return np.zeros(pixels.shape, np.uint8), (low, low + 1.0)
    scaled = (pixels.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8), (low, high)


def scaling_of(extra: Mapping[str, Any], where: str) -> Scaling:
    """How images of more than 8 bits become 8 for a data set, and for the detectors that are trained on it.

    Args:
        extra: further keys of its ``dataset.json``.
        where: that file, for the error text.

    Raises:
        DataError: there is no scaling of this name.
    """
    own = extra.get("medkd")
    return checked_scaling(own.get(SCALING, "percentile") if isinstance(own, Mapping) else "percentile", where)


def checked_scaling(name: Any, where: str) -> Scaling:
    """The scaling of a name.

    Raises:
        DataError: there is none.
    """
    for known in get_args(Scaling):
        if name == known:
            found: Scaling = known
            return found
    raise DataError(f"{where}: 'scaling' must be {' or '.join(get_args(Scaling))}, found {name!r:.60}; correct it.")


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write ``(H, W)`` or ``(H, W, 3)`` uint8 pixels as PNG, without loss, atomically.

    Compression level 3: radiographs are noise in the low bits, and higher levels only cost time.
    """
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=3)


@cache
def _formats() -> tuple[str, ...]:
    """Those of the formats that this Pillow can read."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _decode(path: Path, content: bytes, upright: bool) -> Radiograph:
    opened = Image.open(BytesIO(content), formats=_formats())
    kind, mode = str(opened.format), opened.mode
    orientation = _orientation(opened)
    image, truncated = _load(opened, kind, content)
    wide_colour = _is_wide_colour_png(kind, content)
    pixels = _wide_colour(path) if wide_colour else _pixels(image)
    pixels, lost = _blacken_lost(pixels) if truncated else (pixels, 0.0)
    if _orientation(image) != orientation:  # Pillow turns TIFFs while it loads them, and takes the tag away
        pixels = _turn(pixels, _INVERSE.get(orientation, orientation))
    stored = pixels.shape[1], pixels.shape[0]
    if upright:
        pixels = _turn(pixels, orientation)
    usual = kind in ("PNG", "JPEG") and mode in ("L", "RGB")
    eight_bit = not wide_colour and pixels.dtype == np.uint8
    return Radiograph(
        pixels=np.ascontiguousarray(pixels),
        orientation=orientation,
        stored_size=stored,
        truncated=truncated,
        ending=_ENDINGS.get(kind, ""),
        plain=usual and eight_bit and orientation == 1 and not truncated,
        lost=lost,
    )


def _load(image: Image.Image, kind: str, content: bytes) -> tuple[Image.Image, bool]:
    """The image with its pixels, as far as they go, and whether the end of a JPEG is missing."""
    try:
        image.load()
    except OSError:
        if kind not in ("JPEG", "MPO"):
            raise
        # what Pillow's global switch does too, but safe among threads
        whole = Image.open(BytesIO(content + _END_OF_JPEG), formats=_formats())
        whole.load()
        return whole, True
    return image, False


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, TypeError):  # a damaged EXIF block says nothing about the orientation
        return 1
    return int(value) if value in range(1, 9) else 1


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode in _WIDE_MODES:
        array = np.asarray(image)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            return _black_is_zero(array)
        return array
    if image.mode in ("L", "RGB"):
        return np.asarray(image)
    if image.mode in ("1", "LA", "La"):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB"))


def _black_is_zero(array: np.ndarray) -> np.ndarray:
    """Invert pixels whose lowest value is white, which Pillow does for 8 bits and fewer only (TIFF 6.0,
    PhotometricInterpretation).
    """
    return np.iinfo(array.dtype).max - array if array.dtype.kind == "u" else -array


def _blacken_lost(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Set what is missing at the end of a JPEG to 0; also returns its share.

    The decoder gives mid-grey blocks there (all coefficients 0), row by row to the lower right corner. A grey field is
    found in damaged images only, so that a network could take it for a sign; black is the common border of radiographs.
    """
    grey = pixels == 128
    if grey.ndim == 3:
        grey = grey.all(axis=-1)
    to_right_edge = np.logical_and.accumulate(grey[:, ::-1], axis=1)[:, ::-1]  # grey from here on
    last_rows = np.logical_and.accumulate(grey[::-1, -1])[::-1]
    lost = to_right_edge & last_rows[:, None]
    cleaned = pixels.copy()
    cleaned[lost] = 0
    return cleaned, float(lost.mean())


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Orientation 1 to 8 as flips and a transposition (EXIF 2.3, section 4.6.4)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _is_wide_colour_png(kind: str, content: bytes) -> bool:
    """16 bits per channel and more than one channel: Pillow would silently keep the high bytes only."""
    return kind == "PNG" and content[12:16] == b"IHDR" and content[24] == 16 and content[25] != 0


def _wide_colour(path: Path) -> np.ndarray:
    import SimpleITK as sitk

    try:
        pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise DataError(
            f"Cannot read the radiograph {path}: {str(error).strip().splitlines()[-1]}; save it with 8 bits."
        ) from error
    has_colours = pixels.shape[-1] >= 3  # the last of 2 or 4 channels is opacity
    return pixels[..., :3] if has_colours else pixels[..., 0]
