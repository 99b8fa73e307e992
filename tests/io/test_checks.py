"""The rule for grids that differ a little: one for verification, reading and scoring."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkd.core.geometry import Geometry
from medkd.io.checks import GridDeviation, grid_deviation, grid_findings

GRID = Geometry.from_spacing((6, 7, 8), (3.0, 0.7, 0.7))


def changed(spacing: float = 0.7, moved: float = 0.0) -> Geometry:
    matrix = Geometry.from_spacing(GRID.shape, (3.0, 0.7, spacing)).matrix
    matrix[1, 3] += moved
    return Geometry.from_affine(GRID.shape, matrix)


@pytest.mark.parametrize(
    ("other", "names", "moved", "error"),
    [
        (changed(moved=0.2), ("origin",), 0.2, False),
        (changed(moved=0.7 + 1e-6), ("origin",), 0.7, False),  # one voxel, as a rounded header tells it
        (changed(moved=0.75), ("origin",), 0.75, True),
        (changed(spacing=0.8, moved=0.2), ("spacing",), None, True),
        (Geometry.from_spacing((6, 7, 9), GRID.spacing), ("shape",), None, True),
    ],
)
def test_a_shift_by_one_voxel_at_most_is_no_error(
    other: Geometry, names: tuple[str, ...], moved: float | None, error: bool
) -> None:
    deviation = grid_deviation(GRID, other)
    assert deviation is not None and (deviation.names, deviation.error) == (names, error)
    assert deviation.moved_mm == (None if moved is None else pytest.approx(moved, abs=1e-5))
    (finding,) = grid_findings("c", Path("image.nii.gz"), GRID, Path("label.nii.gz"), other)
    assert finding.error == error and all(name in finding.text() for name in names)


def test_equal_grids_have_no_deviation() -> None:
    assert (
        grid_deviation(GRID, changed(moved=0.005)) is None
        and grid_findings("c", Path("i"), GRID, Path("l"), GRID) == []
    )


@pytest.mark.parametrize("side", [5e-3, 0.05, 0.7, 5.0])
def test_grids_of_any_scale_are_told_apart(side: float) -> None:
    """Microscopes and micro-CT have voxels of a few micrometres."""
    grid = Geometry.from_spacing((6, 7, 8), (side,) * 3)

    def beside(voxels: float = 0.0, spacing: float = 1.0) -> GridDeviation | None:
        matrix = Geometry.from_spacing(grid.shape, (side * spacing,) * 3).matrix
        matrix[0, 3] += voxels * side
        return grid_deviation(grid, Geometry.from_affine(grid.shape, matrix))

    shifted, near, stretched = beside(1.8), beside(0.5), beside(spacing=1.18)
    assert shifted is not None and shifted.error and near is not None and not near.error
    assert stretched is not None and stretched.names == ("spacing",)
    assert beside(0.001) is None and beside(spacing=1.0001) is None
