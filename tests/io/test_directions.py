"""Directions of MetaImage files that are not of length 1: what programs read of them differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.io.volumes import read_geometry, read_volume, write_volume


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a.mha", b"TransformMatrix = 1 0 0", b"TransformMatrix = 2 0 0"),
        ("a.mha", b"TransformMatrix = 1 0 0 0 1 0", b"TransformMatrix = 1 0 0 0 1 1"),
    ],
)
def test_directions_that_programs_read_as_other_voxel_sizes_are_refused(
    tmp_path: Path, name: str, old: bytes, new: bytes
) -> None:
    """SimpleITK takes the spacing as stated, and the rest as a direction; in medkd both make the affine."""
    file = tmp_path / name
    write_volume(file, np.zeros((4, 5, 6), np.int16), Geometry.from_spacing((4, 5, 6), (1.0, 1.0, 1.0)))
    content = file.read_bytes()
    matrix = next(line for line in content.split(b"\n") if line.startswith(b"TransformMatrix"))
    file.write_bytes(content.replace(matrix, b"TransformMatrix = 1 0 0 0 1 0 0 0 1"))
    assert read_volume(file).geometry.spacing == (1.0, 1.0, 1.0)
    file.write_bytes(file.read_bytes().replace(old, new))
    for read in (read_volume, read_geometry):
        with pytest.raises(DataError, match=r"expected directions of length 1 for its axes, found .*export") as caught:
            read(file)
        assert "\n" not in str(caught.value)
