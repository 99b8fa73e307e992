"""Pictures and stacks as nnU-Net's ``NaturalImage2DIO`` and ``Tiff3DIO`` read them: PNG, BMP and TIFF.

A picture is one slice with voxels of 1 × 1 and a distance of 999 to the next, so that nothing is ever resampled across
it; its colours are channels. A TIFF with several pages is a volume whose voxel size stands in a JSON file beside it:
``CASE.json`` for ``CASE_0000.tif`` and for ``CASE.tif``, ``{"spacing": [z, y, x]}``; without one it is 1.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.boxes import COLOURED
from medkd.core.errors import DataError
from medkd.core.files import read_json, write_json

ENDINGS = COLOURED
PICTURE_SPACING = (999.0, 1.0, 1.0)  # nnU-Net's
_TIFF = (".tif", ".tiff")
_CHANNEL = re.compile(r"_\d{4}$")
_FORMATS = ("PNG", "BMP", "JPEG")  # whatever the ending says; none of them starts a program
_COLOURS = {"P": "RGB", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB"}  # modes that are no plain channels


def read_header(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Size in index order (colours last) and the affine.

    Raises:
        DataError: the file is damaged, or no picture.
    """
    voxels, affine = read_voxels(path)
    return voxels.shape, affine


def read_voxels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels in index order ``(x, y, z)``, or ``(x, y, 1, colours)``, and the affine.

    Raises:
        DataError: the file is damaged, or holds something else than a picture or a stack of slices.
    """
    if path.suffix.lower() in _TIFF:
        array, is_stack = _read_tiff(path)
        if is_stack:
            return array.T, _affine(_spacing_beside(path))
    else:
        array = _read_picture(path)
    if array.ndim == 2:
        return array.T[:, :, None], _affine(PICTURE_SPACING)
    return array.transpose(1, 0, 2)[:, :, None], _affine(PICTURE_SPACING)


def write_picture(path: Path, array: np.ndarray, spacing: tuple[float, ...], named: Path) -> None:
    """Write a label map ``(z, y, x)``; of a TIFF with a voxel size of its own this is written beside it.

    Args:
        path: where to write.
        array: whole numbers from 0 to 65535.
        spacing: along ``(z, y, x)``.
        named: the name that the file is going to have.

    Raises:
        DataError: the format cannot hold the array.
    """
    stored = _small(array, named)
    if named.suffix.lower() in _TIFF:
        _write_tiff(path, stored, spacing, named)
        return
    deep = named.suffix.lower() == ".bmp" and stored.dtype != np.uint8
    if len(stored) != 1 or deep:
        what = f"values up to {int(stored.max())}" if deep else f"{len(stored)} slices"
        raise DataError(f"{named}: this format holds one slice of small values, found {what}; choose .nii.gz.")
    from PIL import Image

    Image.fromarray(stored[0]).save(path)


def _small(array: np.ndarray, named: Path) -> np.ndarray:
    """Whole numbers as 8 or 16 bits, as nnU-Net stores them."""
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if array.dtype.kind not in "iub" or low < 0 or high > 65535:
        raise DataError(f"{named}: pictures hold whole numbers from 0 to 65535; choose .nii.gz for these values.")
    return array.astype(np.uint8 if high < 255 else np.uint16)


def _write_tiff(path: Path, array: np.ndarray, spacing: tuple[float, ...], named: Path) -> None:
    """A picture, or a stack with its voxel size beside it."""
    import tifffile

    flat = len(array) == 1 and spacing[0] == PICTURE_SPACING[0]
    tifffile.imwrite(path, array[0] if flat else array, compression="zlib", photometric="minisblack")
    if not flat:
        write_json(named.with_suffix(".json"), {"spacing": [float(value) for value in spacing]})


def _read_picture(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as image:
            image.load()
            mode = "RGBA" if image.mode == "P" and "transparency" in image.info else _COLOURS.get(image.mode)
            array = np.array(image.convert(mode) if mode else image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the picture cannot be read ({error}); replace the file.") from error
    return _checked(path, array)


def _read_tiff(path: Path) -> tuple[np.ndarray, bool]:
    """The array, and whether it is a stack of slices."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series: Any = file.series[0]
            array, colours = series.asarray(), series.axes.endswith("S")
    except (OSError, ValueError, IndexError, KeyError, RuntimeError, tifffile.TiffFileError) as error:
        raise DataError(f"{path}: the TIFF cannot be read ({error}); replace the file.") from error
    if array.ndim == 3 and not colours:
        return array, True
    return _checked(path, array), False


def _checked(path: Path, array: np.ndarray) -> np.ndarray:
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)):
        return array
    raise DataError(
        f"{path}: expected a picture with one, three or four channels, or slices of one channel, found the shape "
        f"{array.shape}; save each channel to a file of its own."
    )


def _spacing_beside(path: Path) -> tuple[float, ...]:
    """The voxel size of a stack, along ``(z, y, x)``."""
    for name in (_CHANNEL.sub("", path.stem), path.stem):
        file = path.with_name(f"{name}.json")
        if not file.exists():
            continue
        content = read_json(file)
        stated = content.get("spacing") if isinstance(content, dict) else None
        values = stated if isinstance(stated, list) else []
        numbers = all(isinstance(value, (int, float)) and 0 < value < np.inf for value in values)
        if not numbers or len(values) != 3:
            raise DataError(f'{file}: expected {{"spacing": [z, y, x]}} in mm, found {content!r:.100}; correct it.')
        return tuple(float(value) for value in values)
    return 1.0, 1.0, 1.0


def _affine(spacing: tuple[float, ...]) -> np.ndarray:
    return np.diag([*reversed(spacing), 1.0])
