"""What preprocessing remembers of a case, so that predictions can be brought back to its native grid."""

from __future__ import annotations

from dataclasses import dataclass

from medkd.core.geometry import Geometry


@dataclass(frozen=True)
class CaseProperties:
    """The way from the native grid to the network's grid.

    Attributes:
        case: case id.
        geometry: the native grid, axes ``(z, y, x)``.
        crop: ``[start, stop)`` per axis of the box that was kept, on the native grid after the plan's transposition.
        shape: the preprocessed shape, transposed, cropped and resampled.
    """

    case: str
    geometry: Geometry
    crop: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
