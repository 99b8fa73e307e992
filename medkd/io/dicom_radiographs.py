"""Radiographs as DICOM files (CR, DX and the like), brought to the 8 bits in which a workstation would show them.

DICOM PS3.3, sections C.11.1 (modality LUT), C.11.2 (VOI LUT and window), C.7.6.3.1.2 (MONOCHROME1: the lowest value is
white). Needs pydicom (``pip install 'medkd[dicom]'``), which is imported when the first file is read.
"""

from __future__ import annotations

import logging
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.errors import DataError
from medkd.io.dicom_header import has_pixels, is_dicom, read_dataset, text_of
from medkd.io.radiographs import Scaling, read_radiograph, to_eight_bit

_log = logging.getLogger(__name__)
_SECTIONS = {"CT", "MR", "PT", "NM"}


def read_eight_bit(path: Path, *, strict: bool = False, scaling: Scaling = "percentile") -> np.ndarray:
    """The upright image in a PNG, JPEG, other image or DICOM file, as a person sees it: ``(H, W)`` or ``(H, W, 3)``
    uint8.

    Of a JPEG whose end is missing, what can be read is given, the rest is black; a warning says so.

    Args:
        path: the file.
        strict: refuse such a JPEG.
        scaling: of images with more than 8 bits that do not say themselves how they are shown.

    Raises:
        DataError: the file is missing, damaged or no radiograph.
    """
    if is_dicom(Path(path)):
        return read_dicom_radiograph(Path(path), scaling)
    radiograph = read_radiograph(path)
    if radiograph.truncated:
        text = (
            f"{path}: expected a whole JPEG, found one whose end is missing, and with it {radiograph.lost:.1%} of the "
            "pixels, which are black; copy or export it again"
        )
        if strict:
            raise DataError(f"{text}, or leave out --strict.")
        _log.warning("%s.", text)
    try:
        return to_eight_bit(radiograph.pixels, scaling)[0]
    except DataError as error:
        if str(path) in str(error):
            raise
        raise DataError(f"{path}: {error}") from error


def read_dicom_radiograph(path: Path, scaling: Scaling = "percentile") -> np.ndarray:
    """One DICOM image ``(H, W)`` (or ``(H, W, 3)`` for colours) uint8.

    The file's own VOI LUT or first window decides about contrast; where it has none, ``scaling`` of the pixels that are
    not padding. Padding is black.

    Raises:
        DataError: pydicom is not installed, or the file is damaged, has no single image, is a CT or MR section, or its
            compression cannot be read.
    """
    dataset = read_dataset(path)
    _check(path, dataset)
    stored = _pixels(path, dataset)
    if stored.ndim == 3:
        return to_eight_bit(np.ascontiguousarray(stored[..., :3]), scaling)[0]
    try:
        values = _modality(path, stored, dataset)
        shown = _windowed(values, dataset)
    except (ValueError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
        raise DataError(
            f"{path}: its rescaling or window is damaged ({type(error).__name__}: {error}); export it again."
        ) from error
    padding = _padding(stored, dataset)
    if shown is None:
        shown = _by_values(values, padding, scaling)
    if text_of(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        shown = 255 - shown
    return np.where(padding, 0, shown).astype(np.uint8)


def _check(path: Path, dataset: Any) -> None:
    modality = text_of(dataset, "Modality")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if not has_pixels(dataset) or "PixelData" not in dataset:
        raise DataError(f"{path} holds no image; expected a radiograph (CR, DX).")
    if modality in _SECTIONS:
        raise DataError(
            f"{path} is a section of modality {modality}, expected a radiograph (CR, DX); predict sections with their "
            "own model."
        )
    if frames > 1:
        raise DataError(
            f"{path} holds {frames} frames, expected one radiograph per file; export the frames one by one."
        )
    if text_of(dataset, "PhotometricInterpretation") == "PALETTE COLOR":
        raise DataError(f"{path} is a palette image, expected a radiograph in grey levels; convert it to PNG first.")


def _pixels(path: Path, dataset: Any) -> np.ndarray:
    try:
        return np.asarray(dataset.pixel_array)
    except Exception as error:  # the decoders raise errors of any kind
        syntax = dataset.file_meta.TransferSyntaxUID
        first = str(error).strip().splitlines()[0].rstrip(".")
        if not syntax.is_compressed:
            raise DataError(f"{path} is truncated or damaged ({first}); copy or export it again.") from error
        return _pixels_by_itk(path, dataset)


def _pixels_by_itk(path: Path, dataset: Any) -> np.ndarray:
    """Decode what pydicom has no plug-in for (JPEG Lossless above all); SimpleITK rescales, so that is not to be done
    again.
    """
    import SimpleITK as sitk

    try:
        pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
    except RuntimeError as error:
        syntax = dataset.file_meta.TransferSyntaxUID
        raise DataError(
            f"{path}: no decoder that is installed can read its compression, {syntax.name}; install pylibjpeg with "
            "pylibjpeg-libjpeg and pylibjpeg-openjpeg, or decompress it (gdcmconv --raw)."
        ) from error
    for key in ("RescaleSlope", "RescaleIntercept"):
        if key in dataset:
            del dataset[key]
    return pixels


def _modality(path: Path, stored: np.ndarray, dataset: Any) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut

    for key in ("RescaleSlope", "RescaleIntercept"):
        if not isfinite(float(dataset.get(key) or 0.0)):
            raise ValueError(f"{key} is {dataset.get(key)}")
    if dataset.get("RescaleSlope") is not None and float(dataset.RescaleSlope) == 0:
        _log.warning("%s: RescaleSlope is 0, which would make all pixels equal, and is read as not set.", path)
        dataset.RescaleSlope = 1
    return np.asarray(apply_modality_lut(stored, dataset), np.float64)


def _windowed(values: np.ndarray, dataset: Any) -> np.ndarray | None:
    """Values ``(H, W)`` in 0..255 by the file's VOI LUT or window; None where it has neither."""
    if dataset.get("VOILUTSequence"):
        from pydicom.pixels import apply_voi

        table = apply_voi(np.rint(values).astype(np.int64), dataset)
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return _grey(table / (2**bits - 1))
    centre = _first(dataset.get("WindowCenter"))
    width = _first(dataset.get("WindowWidth"))
    if centre is None or width is None or width < 1:
        return None
    kind = text_of(dataset, "VOILUTFunction") or "LINEAR"
    if kind == "SIGMOID":
        exponent = -4 * (values - centre) / width
        return _grey(1 / (1 + np.exp(np.clip(exponent, -700, 700))))
    if kind == "LINEAR_EXACT":
        return _grey((values - centre) / width + 0.5)
    return _grey((values - (centre - 0.5)) / max(width - 1, 1e-6) + 0.5)


def _grey(share: np.ndarray) -> np.ndarray:
    """Brightness from 0 to 1, clipped, as uint8."""
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def _first(value: Any) -> float | None:
    """The number, or the first one of several."""
    if value is None or value == "":
        return None
    single = isinstance(value, (int, float, str))
    number = float(value if single else value[0])
    if not isfinite(number):
        raise ValueError(f"a window of {number}")
    return number


def _padding(stored: np.ndarray, dataset: Any) -> np.ndarray:
    """Mask of the pixels outside of the exposed field, where the file says so by a value or by the ends of a range
    (PS3.3, C.7.5.1.1.2).
    """
    value = dataset.get("PixelPaddingValue")
    limit = dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return np.zeros(stored.shape, bool)
    if not isinstance(limit, int):
        limit = value
    low, high = min(value, limit), max(value, limit)
    return (stored >= low) & (stored <= high)


def _by_values(values: np.ndarray, padding: np.ndarray, scaling: Scaling) -> np.ndarray:
    inside = values.reshape(-1) if padding.all() else values[~padding]
    if (inside == np.rint(inside)).all():
        inside = inside.astype(np.int64)
    _, (low, high) = to_eight_bit(inside[None], scaling)
    return _grey((values - low) / (high - low))
