"""FreeSurfer's MGH and MGZ files, by nibabel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.errors import DataError

_PACKED = 1100  # gzip cannot make a file smaller than by this factor


def read_header(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape in the file's index order and the affine to RAS+ mm.

    Raises:
        DataError: the file is missing or not an MGH file.
    """
    with _told(path):
        image = _load(path)
        return tuple(map(int, image.shape)), np.asarray(image.affine, dtype=np.float64)


def read_voxels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels in the file's index order and the affine to RAS+ mm.

    Raises:
        DataError: the file is missing, truncated or not an MGH file.
    """
    with _told(path):
        image = _load(path)
        _check_size(path, image)
        return np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)


def _load(path: Path) -> Any:
    import nibabel

    with np.errstate(all="ignore"):
        return nibabel.load(path)


def _check_size(path: Path, image: Any) -> None:
    """A wrong size in a header must not ask for all the memory."""
    announced = prod(map(int, image.shape)) * image.get_data_dtype().itemsize
    most = path.stat().st_size
    if path.suffix.lower() == ".mgz":
        most *= _PACKED
    if announced > most:
        raise DataError(f"{path} is truncated: its header announces {announced} bytes of voxels; copy the file again.")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What nibabel stumbles over in a damaged header (KeyError, OverflowError, …) names the file."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"Expected the image file {path}, but it does not exist.") from error
    except Exception as error:
        raise DataError(
            f"{path} is truncated or damaged ({type(error).__name__}: {error}); copy the file again, or convert it "
            "to .nii.gz."
        ) from error
