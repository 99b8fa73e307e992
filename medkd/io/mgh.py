"""FreeSurfer's MGH and MGZ files, by nibabel."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.errors import DataError


def read_header(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape in the file's index order and the affine to RAS+ mm.

    Raises:
        DataError: the file is missing or not an MGH file.
    """
    image = _load(path)
    return tuple(int(n) for n in image.shape), np.asarray(image.affine, dtype=np.float64)


def read_voxels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels in the file's index order and the affine to RAS+ mm.

    Raises:
        DataError: the file is missing, truncated or not an MGH file.
    """
    image = _load(path)
    try:
        return np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); copy the file again.") from error


def _load(path: Path) -> Any:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        return nibabel.load(path)
    except FileNotFoundError as error:
        raise DataError(f"Expected the image file {path}, but it does not exist.") from error
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise DataError(f"Cannot read {path}: {error}; convert the scan to .nii.gz.") from error
