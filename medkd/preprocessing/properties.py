"""What preprocessing remembers of a case, so that predictions can be brought back to its native grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medkd.core.geometry import Geometry
from medkd.io.orientation import axis_code, turn


@dataclass(frozen=True)
class CaseProperties:
    """The way from the native grid to the network's grid.

    Attributes:
        case: case id.
        geometry: the native grid, axes ``(z, y, x)``.
        crop: ``[start, stop)`` per axis of the box that was kept, on the turned grid after the plan's transposition.
        shape: the preprocessed shape, turned, transposed, cropped and resampled.
        turned: the native grid turned to the plan's axis code; None where it was not turned.
    """

    case: str
    geometry: Geometry
    crop: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    turned: Geometry | None = None

    @property
    def grid(self) -> Geometry:
        """The native grid as the network's axes see it."""
        return self.turned or self.geometry

    def turn_back(self, array: np.ndarray) -> np.ndarray:
        """Bring ``(..., z, y, x)`` on :attr:`grid` to the scan's own orientation; a view."""
        if self.turned is None:
            return array
        return turn(array, axis_code(self.turned), axis_code(self.geometry))
