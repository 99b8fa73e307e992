"""Where a voxel grid lies in the patient."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import numpy as np

Triple = tuple[float, float, float]
_FULL = 0.5
"""Side of a voxel in mm from which on the tolerances are lengths; those of smaller ones are shares of a voxel."""


def nested(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """A matrix as tuples of floats."""
    rows = np.asarray(matrix, dtype=np.float64).tolist()
    return tuple(map(tuple, rows))


@dataclass(frozen=True, kw_only=True)
class NiftiForms:
    """Everything that a NIfTI header says about where the voxels lie; readers choose differently among it.

    Attributes:
        sform: 4 × 4 matrix to RAS+ mm, or None where its code is 0.
        sform_code: what the sform refers to.
        qform: the matrix of the quaternion, or None where its code is 0.
        qform_code: what the qform refers to.
        pixdim: voxel size in mm along the index ``(x, y, z)``.
    """

    sform: tuple[tuple[float, ...], ...] | None
    sform_code: int
    qform: tuple[tuple[float, ...], ...] | None
    qform_code: int
    pixdim: tuple[float, ...]


@dataclass(frozen=True)
class Geometry:
    """A voxel grid in space.

    Arrays in medkd are ordered ``(z, y, x)``: the reverse of a NIfTI file's index order, as SimpleITK gives them. The
    affine keeps the file's own convention: it maps the index ``(x, y, z)`` to RAS+ millimetres.

    Attributes:
        shape: voxels along ``(z, y, x)``.
        affine: 4 × 4 matrix as nested tuples, ``(x, y, z, 1)`` → RAS+ mm.
        forms: of a NIfTI file, what its header says besides; written back with what is made from the scan. No part of
            the comparison of two grids.
    """

    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    forms: NiftiForms | None = field(default=None, compare=False)

    @classmethod
    def from_affine(cls, shape: tuple[int, ...], affine: np.ndarray, forms: NiftiForms | None = None) -> Geometry:
        """Build from an array shape ``(z, y, x)`` and a 4 × 4 affine for the index ``(x, y, z)``."""
        return cls(tuple(map(int, shape)), nested(affine), forms)

    @classmethod
    def from_spacing(cls, shape: tuple[int, ...], spacing: tuple[float, ...]) -> Geometry:
        """An axis-aligned grid at the origin with ``spacing`` in mm along ``(z, y, x)``.

        >>> grid = Geometry.from_spacing((40, 512, 512), (5.0, 0.8, 0.8))
        >>> grid.shape, grid.spacing
        ((40, 512, 512), (5.0, 0.8, 0.8))
        """
        return cls.from_affine(shape, np.diag([*reversed(spacing), 1.0]))

    @property
    def matrix(self) -> np.ndarray:
        """The affine as a float64 array of shape (4, 4)."""
        return np.array(self.affine, dtype=np.float64)

    @property
    def spacing(self) -> Triple:
        """Voxel size in mm along ``(z, y, x)``."""
        lengths = np.linalg.norm(self.matrix[:3, :3], axis=0)
        return float(lengths[2]), float(lengths[1]), float(lengths[0])

    @property
    def diagonal(self) -> float:
        """Length in mm of the image's diagonal, corner to corner of the volume."""
        return float(np.linalg.norm(np.array(self.shape) * np.array(self.spacing)))

    def differences(self, other: Geometry, *, tolerance: float = 1e-3) -> list[str]:
        """Name what differs from ``other``: ``"shape"``, ``"spacing"``, ``"origin"``, ``"direction"``.

        Args:
            other: the grid to compare with.
            tolerance: mm for spacing, and of voxels below 0.5 mm twice this share of their side; ten times that for the
                origin, by the shortest side; absolute for direction cosines.
        """
        found = [] if self.shape == other.shape else ["shape"]
        sides = np.minimum(self.spacing, other.spacing)
        allowed = tolerance * np.minimum(1.0, sides / _FULL)
        compared = (
            ("spacing", self.spacing, other.spacing, allowed),
            ("origin", self.matrix[:3, 3], other.matrix[:3, 3], 10 * allowed.min()),
            ("direction", self._directions(), other._directions(), tolerance),
        )
        for name, own, others, most in compared:
            if not (np.abs(np.subtract(own, others)) <= most).all():
                found.append(name)
        return found

    def corner_shift(self, affine: np.ndarray) -> float:
        """How far in mm the corner of the volume that moves most does so under another affine for the same voxels."""
        ends = [(0, size - 1) for size in reversed(self.shape)]
        corners = np.array([[*corner, 1] for corner in product(*ends)]).T
        moved = (self.matrix - affine) @ corners
        return float(np.linalg.norm(moved[:3], axis=0).max())

    def _directions(self) -> np.ndarray:
        columns = self.matrix[:3, :3]
        return columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-12)
