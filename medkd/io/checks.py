"""What can be wrong with the files of a case; shared by reading, verification and conversion."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkd.core.errors import DataError
from medkd.core.geometry import Geometry

_PIECE = 1 << 20
_ONE_VOXEL = (
    1.001  # a shift of exactly one voxel (counted from 1 instead of 0) must not hang on the rounding of a header
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is wrong, or may be.

    Attributes:
        case: case id; empty for the data set as a whole.
        file: the file, as text; empty where none is to blame.
        expected: what should have been there.
        found: what is there.
        action: what to do.
        error: whether the case cannot be used; otherwise it is a warning.
    """

    case: str
    file: str
    expected: str
    found: str
    action: str
    error: bool = True

    def text(self) -> str:
        """One sentence."""
        case = f"case {self.case}" if self.case else ""
        where = ": ".join(filter(None, (case, self.file))) or "the data set"
        return f"{where}: expected {self.expected}, found {self.found}; {self.action}."


def has_error(findings: Iterable[Finding]) -> bool:
    """Whether one of these is an error."""
    return any(finding.error for finding in findings)


@dataclass(frozen=True)
class GridDeviation:
    """How a grid differs from another one.

    Attributes:
        names: ``shape`` and ``spacing`` where they differ, else ``origin`` and ``direction``.
        moved_mm: how far the corner that moves most does so; None where shape or spacing differ.
        error: whether the voxels do not correspond.
    """

    names: tuple[str, ...]
    moved_mm: float | None
    error: bool


def unreadable_finding(case: str, path: Path, error: DataError) -> Finding:
    """A file that could not be read; the error's own text says why."""
    return Finding(
        case=case,
        file=str(path),
        expected="a readable 3D volume",
        found=str(error).rstrip("."),
        action="replace the file or leave the case out",
    )


def finite_finding(case: str, path: Path, array: np.ndarray) -> list[Finding]:
    """NaN and infinite voxels of an image, counted; an empty list where all are finite."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return []
    nan = np.count_nonzero(np.isnan(array))
    infinite = np.count_nonzero(np.isinf(array))
    found = f"{nan} NaN and {infinite} infinite of {array.size} voxels"
    return [
        Finding(
            case=case,
            file=str(path),
            expected="finite intensities",
            found=found,
            action="replace them (by the background's value, say) or leave the case out",
        )
    ]


def header_findings(case: str, path: Path, remarks: Iterable[tuple[str, str]]) -> list[Finding]:
    """What is odd in a header that can be read, see :class:`medkd.io.volumes.Volume`."""
    action = "programs see the scan in different places or sizes: mend the header, or export the scan again"
    findings = []
    for expected, found in remarks:
        findings.append(Finding(case=case, file=str(path), expected=expected, found=found, action=action, error=False))
    return findings


def grid_findings(case: str, reference: Path, grid: Geometry, path: Path, other: Geometry) -> list[Finding]:
    """How the grid of ``path`` differs from the one of ``reference``.

    Another shape or spacing is an error. Another origin or direction is a warning (as in nnU-Net) while no corner of
    the volume moves by more than one voxel, since headers are often rounded; beyond that the two files show different
    places, or one is flipped, and it is an error.
    """
    deviation = grid_deviation(grid, other)
    if deviation is None:
        return []
    names = deviation.names
    wanted = "; ".join(_value(grid, name) for name in names)
    expected = f"the same {' and '.join(names)} as {reference.name} ({wanted})"
    found = "; ".join(_value(other, name) for name in names)
    if deviation.moved_mm is None:
        action = "resample one of the two onto the other's grid, or leave the case out"
    else:
        found += f" (up to {deviation.moved_mm:.3g} mm apart)"
        action = (
            "check that both show the same place; if the voxels do correspond, copy the image's header to the other "
            "file"
        )
    return [Finding(case=case, file=str(path), expected=expected, found=found, action=action, error=deviation.error)]


def grid_deviation(grid: Geometry, other: Geometry) -> GridDeviation | None:
    """How ``other`` differs from ``grid``, by the rule of :func:`grid_findings`; None where both are the same."""
    differing = grid.differences(other)
    if not differing:
        return None
    hard = tuple(name for name in differing if name in ("shape", "spacing"))
    if hard:
        return GridDeviation(hard, None, True)
    moved = grid.corner_shift(other.matrix)
    return GridDeviation(tuple(differing), moved, moved > _ONE_VOXEL * min(grid.spacing))


def label_finding(case: str, path: Path, values: Iterable[int], allowed: Collection[int]) -> list[Finding]:
    """Label values that ``dataset.json`` does not know."""
    wrong = sorted(set(values) - set(allowed))
    if not wrong:
        return []
    expected = f"only the label values {_listed(sorted(allowed))} of dataset.json"
    return [
        Finding(
            case=case,
            file=str(path),
            expected=expected,
            found=f"also {_listed(wrong)}",
            action="add them to dataset.json or correct the label map",
        )
    ]


def label_values(array: np.ndarray) -> tuple[int, ...]:
    """The distinct values of an integer label map, ascending."""
    return tuple(label_counts(array))


def label_counts(array: np.ndarray) -> dict[int, int]:
    """The distinct values of an integer label map, ascending → their number of voxels.

    They are counted piece by piece, which is faster than sorting.
    """
    if not array.size:
        return {}
    low, high = min(int(array.min()), 0), int(array.max())
    counts = np.zeros(high - low + 1, np.int64)
    flat = array.reshape(-1)
    for start in range(0, flat.size, _PIECE):  # bincount works on an int64 copy
        piece = flat[start : start + _PIECE].astype(np.int64)
        counts += np.bincount(piece - low, minlength=counts.size)
    found = {}
    for place in np.flatnonzero(counts).tolist():
        found[place + low] = int(counts[place])
    return found


def _value(grid: Geometry, name: str) -> str:
    """The shape, spacing, origin or direction of a grid, for a text."""
    matrix = grid.matrix
    if name == "shape":
        return f"shape {'×'.join(map(str, grid.shape))}"
    if name == "spacing":
        return f"spacing {_joined(grid.spacing, ' × ')} mm"
    if name == "origin":
        return f"origin ({_joined(matrix[:3, 3], ', ')})"
    directions = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    rows = [_joined(row, " ") for row in directions]
    return f"direction ({'; '.join(rows)})"


def _joined(values: Iterable[float], between: str) -> str:
    return between.join(f"{value:.4g}" for value in values)


def _listed(values: list[int]) -> str:
    shown = ", ".join(map(str, values[:20]))
    if len(values) > 20:
        shown += f", … ({len(values)} in all)"
    return shown
