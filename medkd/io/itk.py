"""NRRD and MetaImage files by SimpleITK, with the affine turned from LPS (ITK) to RAS+ (NIfTI and medkd)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.errors import DataError

_ROUNDING = 1e-3  # of directions that are written with few digits
_LONGEST_HEADER = 1 << 16
_PLACING = frozenset({"offset", "origin", "position", "elementspacing", "transformmatrix", "rotation", "orientation"})
"""Fields of MetaImage whose wrong numbers ITK replaces in silence; of NRRD they are the next ones."""
_NRRD_ORIGIN = "space origin"
_NRRD_AXES = frozenset({"spacings", "space directions"})  # of each axis; of one that is not in space nan or none
_SPATIAL = 3

_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_header(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Size in index order and the affine to RAS+ mm, without reading the voxels.

    Raises:
        DataError: SimpleITK cannot read the file.
    """
    reader = _reader(path)
    _call(path, reader.ReadImageInformation)
    return tuple(reader.GetSize()), _affine(path, reader)


def read_voxels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels in index order ``(x, y, z)`` and the affine to RAS+ mm.

    Raises:
        DataError: SimpleITK cannot read the file, or it holds several numbers per voxel.
    """
    import SimpleITK as sitk

    reader = _reader(path)
    image = _call(path, reader.Execute)
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise DataError(
            f"{path}: expected one number per voxel, found {image.GetNumberOfComponentsPerPixel()}; save each channel "
            "to a file of its own."
        )
    return sitk.GetArrayFromImage(image).T, _affine(path, image)


def write_itk(path: Path, array: np.ndarray, affine: np.ndarray, fields: Mapping[str, str] | None = None) -> None:
    """Write voxels in index order ``(x, y, z)``, compressed.

    Args:
        path: NRRD or MetaImage.
        array: the voxels.
        affine: index → RAS+ mm.
        fields: further fields of an NRRD header.

    Raises:
        DataError: ITK cannot hold the affine (its axes are not perpendicular) or cannot write.
    """
    import SimpleITK as sitk

    matrix = _FLIP @ affine
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    try:
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(matrix[:3, 3].tolist())
        image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
        for key, value in (fields or {}).items():
            image.SetMetaData(key, value)
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise DataError(
            f"Cannot write {path}: {_last_line(error)}; write .nii.gz instead, or free some space."
        ) from error


def _reader(path: Path) -> Any:
    import SimpleITK as sitk

    if not path.exists():
        raise DataError(f"Expected the image file {path}, but it does not exist.")
    _check_numbers(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    return reader


def _check_numbers(path: Path) -> None:
    """See that the header places its voxels by numbers: ITK reads nan, inf and words as 0 or 1, without a word.

    Raises:
        DataError: an origin, spacing or direction holds something else.
    """
    for key, text in _placing_fields(path).items():
        if not (_places_axes(text) if key in _NRRD_AXES else _are_numbers(text)):
            raise DataError(
                f"{path}: expected finite numbers as '{key}', found '{text:.60}', which programs read as 0 or 1; "
                "export the scan again, best as .nii.gz."
            )


def _are_numbers(text: str) -> bool:
    return all(map(_is_number, re.split(r"[\s,()]+", text.strip("() "))))


def _places_axes(text: str) -> bool:
    """Whether all axes have finite numbers, but for those beyond three, which need not be in space."""
    axes = re.findall(r"\([^)]*\)|[^\s()]+", text)
    placed = sum(map(_are_numbers, axes))
    broken = any(axis.startswith("(") and not _are_numbers(axis) for axis in axes)
    return not broken and placed >= min(_SPATIAL, len(axes))


def _placing_fields(path: Path) -> dict[str, str]:
    """The fields of a header that place its voxels, by their names in small letters."""
    with path.open("rb") as stream:
        head = stream.read(_LONGEST_HEADER)
    is_nrrd = head.startswith(b"NRRD")
    end, mark, wanted = (b"\n\n", ":", {_NRRD_ORIGIN, *_NRRD_AXES}) if is_nrrd else (b"ElementDataFile", "=", _PLACING)
    fields = {}
    for line in head.replace(b"\r\n", b"\n").partition(end)[0].decode("latin-1").split("\n"):
        key, _, text = line.partition(mark)
        if key.strip().lower() in wanted:  # in NRRD, what users name themselves has := and any name
            fields[key.strip().lower()] = text.strip()
    return fields


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def _call(path: Path, function: Any) -> Any:
    try:
        return function()
    except RuntimeError as error:
        raise DataError(f"Cannot read {path}: {_last_line(error)}; export the scan again, best as .nii.gz.") from error


def _affine(path: Path, image: Any) -> np.ndarray:
    n = len(image.GetSpacing())
    affine = np.eye(4)
    if n >= 3:  # a fourth axis is refused by the caller; a 2D image gets its message there too
        directions = np.reshape(image.GetDirection(), (n, n))[:3, :3]
        lengths = np.linalg.norm(directions, axis=0)
        if np.abs(lengths - 1).max() > _ROUNDING:
            shown = ", ".join(f"{length:.4g}" for length in lengths)
            raise DataError(
                f"{path}: expected directions of length 1 for its axes, found {shown}, so that programs see voxels of "
                "different sizes; export the scan again, best as .nii.gz."
            )
        affine[:3, :3] = directions * np.array(image.GetSpacing())[:3]
        affine[:3, 3] = image.GetOrigin()[:3]
    return _FLIP @ affine


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip().rstrip(".")
