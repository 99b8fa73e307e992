"""Pixels of DICOM images, rescaled: stored value × RescaleSlope + RescaleIntercept (HU for CT)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.errors import DataError
from medkd.io.dicom_header import Frame, read_dataset, told

_log = logging.getLogger(__name__)
_TYPES = (np.int16, np.int32, np.float32)
_LIMITS = (2**15, 2**31)
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def read_planes(frames: Sequence[Frame]) -> np.ndarray:
    """The rescaled planes ``(z, y, x)`` in the given order.

    Whole slopes and intercepts keep integers: int16 where all values fit, else int32; everything else is float32.

    Raises:
        DataError: a file has no pixels, fewer than it announces, or none of the decoders can read its compression.
    """
    _tell_of_zero_slopes(frames)
    rank = 0
    planes = np.empty((len(frames), *frames[0].size), _TYPES[rank])
    path: Path | None = None
    for place, frame in enumerate(frames):
        if frame.path != path:  # the frames of a multi-frame file follow each other
            path = frame.path
            stored, rescaled = _decode(path)
            if stored.ndim != 3 or stored.shape[1:] != frame.size or len(stored) <= frame.index:
                raise DataError(
                    f"{path}: expected images of {frame.size} pixels, found the shape {stored.shape}; export it again."
                )
        plane = stored[frame.index]
        if not rescaled:
            plane = _rescale(plane, frame.slope or 1.0, frame.intercept or 0.0)
        rank = max(rank, _rank(plane))
        planes = planes.astype(_TYPES[rank], copy=False)  # scanners' values fit into int16: this hardly ever copies
        planes[place] = plane
    return planes


def _tell_of_zero_slopes(frames: Sequence[Frame]) -> None:
    zero = [frame.path.name for frame in frames if frame.slope == 0]
    if zero:
        _log.warning(
            "%s: RescaleSlope is 0 in %d of %d slices, for example %s, which is read as not set; if stored values are "
            "to be scaled, export the series again.",
            frames[0].path.parent,
            len(zero),
            len(frames),
            zero[0],
        )


def _rescale(plane: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    whole = slope.is_integer() and intercept.is_integer()
    if plane.dtype.kind in "iu" and whole and max(abs(slope), abs(intercept)) < 2**31:
        small = abs(slope) < 2**14 and abs(intercept) < 2**29
        short = plane.dtype.itemsize <= 2
        values: np.ndarray = plane.astype(np.int32 if small and short else np.int64)
        np.multiply(values, int(slope), out=values)
        np.add(values, int(intercept), out=values)
        return values
    return plane.astype(np.float64) * slope + intercept


def _rank(plane: np.ndarray) -> int:
    """The place in ``_TYPES`` of the smallest type that holds the values."""
    if plane.dtype.kind == "f":
        return 2
    low, high = int(plane.min()), int(plane.max())
    for rank, limit in enumerate(_LIMITS):
        if -limit <= low and high < limit:
            return rank
    return 2


def _decode(path: Path) -> tuple[np.ndarray, bool]:
    """All frames of a file ``(frames, y, x)``, and whether they are rescaled already."""
    dataset = read_dataset(path)
    if not any(key in dataset for key in _PIXELS):
        raise DataError(f"{path} has a header, but no pixel data; export the series again, with its images.")
    if "ModalityLUTSequence" in dataset:
        raise DataError(
            f"{path} maps its values by a table (ModalityLUTSequence), which medkd does not read; convert it with "
            "another tool."
        )
    with told(path):
        compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
    try:
        stored = dataset.pixel_array
    except Exception as error:  # the decoders raise errors of any kind
        syntax = dataset.file_meta.TransferSyntaxUID
        if not compressed:
            raise DataError(
                f"{path} is truncated or damaged ({_first_line(error)}); copy or export it again."
            ) from error
        return _decode_by_itk(path, f"{syntax.name} ({syntax})", dataset), True
    return stored.reshape(-1, *stored.shape[-2:]), False


def _decode_by_itk(path: Path, syntax: str, dataset: Any) -> np.ndarray:
    """Decode what pydicom has no plug-in for (JPEG Lossless and JPEG-LS above all) by SimpleITK, which rescales as
    well.
    """
    import SimpleITK as sitk

    try:
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            raise RuntimeError("compressed multi-frame image")
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise DataError(
            f"{path}: no decoder that is installed can read its compression, {syntax}; install pylibjpeg with "
            "pylibjpeg-libjpeg and pylibjpeg-openjpeg, or decompress the series (gdcmconv --raw)."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
