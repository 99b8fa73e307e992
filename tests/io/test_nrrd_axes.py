"""NRRD files whose axes have no size that is a number: ITK reads them as 1 mm, in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import DataError
from medkd.io.itk import read_voxels

IN_SPACE = "space: left-posterior-superior\nspace origin: (0,0,0)\nspace directions: "


def _nrrd(path: Path, fields: str, sizes: tuple[int, ...] = (4, 5, 6)) -> Path:
    head = f"NRRD0004\ntype: uchar\ndimension: {len(sizes)}\nsizes: {' '.join(map(str, sizes))}\nencoding: raw\n"
    path.write_bytes(f"{head}{fields}\n\n".encode() + bytes(int(np.prod(sizes))))
    return path


@pytest.mark.parametrize(
    "fields",
    [
        "spacings: nan 1 1",
        "spacings: 1 inf 1",
        f"{IN_SPACE}(nan,nan,nan) (0,1,0) (0,0,1)",
        f"{IN_SPACE}none (0,1,0) (0,0,1)",
        f"{IN_SPACE}(1,0,0) (0, 1, nan) (0,0,1)",
    ],
)
def test_axes_without_numbers_are_refused(tmp_path: Path, fields: str) -> None:
    with pytest.raises(DataError, match=r"expected finite numbers as '(spacings|space directions)'.*\.nii\.gz\.$"):
        read_voxels(_nrrd(tmp_path / "a.nrrd", fields))


@pytest.mark.parametrize("fields", ["spacings: 2 1 1", f"{IN_SPACE}(2, 0, 0) (0,1,0) (0,0,1)"])
def test_axes_with_numbers_are_read(tmp_path: Path, fields: str) -> None:
    array, affine = read_voxels(_nrrd(tmp_path / "a.nrrd", fields))
    assert array.shape == (4, 5, 6) and np.allclose(np.abs(affine[:3, :3]), np.diag([2, 1, 1]))


def test_an_axis_that_is_not_in_space_needs_none(tmp_path: Path) -> None:
    """Its several numbers per voxel are what is told, in a sentence of their own."""
    fields = f"kinds: vector domain domain domain\n{IN_SPACE}none (1,0,0) (0,1,0) (0,0,1)"
    with pytest.raises(DataError, match="one number per voxel"):
        read_voxels(_nrrd(tmp_path / "a.nrrd", fields, (3, 4, 5, 6)))
