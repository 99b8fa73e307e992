"""Put the planes of a DICOM series in order, and find the grid that they form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medkd.core.errors import DataError
from medkd.io.dicom_header import Frame

_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SAME_PLACE = 0.01  # mm; closer planes are the same plane
_COSINE = 1e-3  # files store cosines with three or more digits
_EXPORT = "export the series again"
_NOT_SAID = {"RescaleSlope": "0 or missing", "RescaleIntercept": "missing"}


@dataclass(frozen=True)
class Stack:
    """Planes in the order of the volume's z axis, and the affine of the index ``(x, y, z)`` to RAS+ mm."""

    frames: tuple[Frame, ...]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sizes along ``(x, y, z)``."""
        rows, columns = self.frames[0].size
        return columns, rows, len(self.frames)


def stack_frames(frames: Sequence[Frame], where: str) -> Stack:
    """Sort planes along their normal, which is row direction × column direction, and check that they form a regular
    grid.

    An oblique acquisition is kept as it is; the grid must only be perpendicular and evenly spaced. Positions may be
    rounded: a plane may lie a tenth of the spacing (0.1 mm where that is more, at most a quarter) from its place along
    the normal, and across it a tenth of a pixel or 0.03° over the whole stack.

    Args:
        frames: two or more planes in any order.
        where: how error texts call the series.

    Raises:
        DataError: a plane says no position; sizes, orientations or pixel spacings differ; the stack is sheared (gantry
            tilt); planes are missing, there twice or unevenly spaced.
    """
    _check_alike(frames, where)
    across, down, normal = plane_axes(frames[0], where)
    positions = np.array([frame.position for frame in frames])
    order = np.argsort(positions @ normal, kind="stable")
    ordered = [frames[place] for place in order]
    positions = positions[order]
    depths = positions @ normal
    _check_depths(ordered, depths, where)
    step = (depths[-1] - depths[0]) / (len(frames) - 1)
    _check_shear(ordered, positions, normal, where)
    between_rows, between_columns = frames[0].spacing
    affine = np.eye(4)
    affine[:3, 0] = across * between_columns
    affine[:3, 1] = down * between_rows
    affine[:3, 2] = normal * step
    affine[:3, 3] = positions[0]
    return Stack(tuple(ordered), _RAS @ affine)


def _check_alike(frames: Sequence[Frame], where: str) -> None:
    for frame in frames:
        tag = _missing_tag(frame)
        if tag is not None:
            kind = "multi-frame image" if any(other.index for other in frames) else "image"
            raise DataError(
                f"{where}: the {kind} {frame.path.name} does not say where it lies ({tag} is missing); {_EXPORT}."
            )
    spacings = [frame.spacing for frame in frames]
    if min(map(min, spacings)) <= 0:
        raise DataError(f"{where}: the pixel spacing must be positive, found {min(spacings)} mm; {_EXPORT}.")
    _check_same(frames, lambda f: f.size, 0, "sizes (rows × columns)", where)
    _check_same(frames, lambda f: f.orientation, _COSINE, "orientations", where)
    _check_same(frames, lambda f: f.spacing, 1e-3 * min(frames[0].spacing), "pixel spacings", where)
    _check_scaled(frames, lambda f: f.slope or None, 1.0, "RescaleSlope", where)
    _check_scaled(frames, lambda f: f.intercept, 0.0, "RescaleIntercept", where)
    if len(frames) < 2:
        raise DataError(
            f"{where}: expected a stack of slices, found the single slice {frames[0].path.name}; give the whole series."
        )


def _check_scaled(
    frames: Sequence[Frame], value: Callable[[Frame], float | None], unset: float, tag: str, where: str
) -> None:
    """Slices that do not say how their values are scaled do not lie among others that are scaled."""
    silent = [frame for frame in frames if value(frame) is None]
    scaled = [frame for frame in frames if value(frame) not in (None, unset)]
    if silent and scaled:
        raise DataError(
            f"{where}: {tag} is {value(scaled[0]):g} in {_name(scaled[0])}, but {_NOT_SAID[tag]} in {len(silent)} of "
            f"{len(frames)} slices (first {_name(silent[0])}), whose values would be of another scale; {_EXPORT}."
        )


def _missing_tag(frame: Frame) -> str | None:
    """What a plane does not say of its place."""
    needed = {
        "ImagePositionPatient": frame.position,
        "ImageOrientationPatient": frame.orientation,
        "PixelSpacing": frame.spacing,
    }
    for tag, value in needed.items():
        if not value:
            return tag
    return None


def _check_same(
    frames: Sequence[Frame], value: Callable[[Frame], tuple[float, ...]], tolerance: float, what: str, where: str
) -> None:
    first = value(frames[0])
    for frame in frames:
        if not np.allclose(value(frame), first, rtol=0, atol=tolerance):
            a, b = _listed(first), _listed(value(frame))
            raise DataError(
                f"{where} mixes slices of different {what}: {a} in {frames[0].path.name}, {b} in {frame.path.name}; "
                "sort them into one folder and series each."
            )


def _listed(numbers: Sequence[float]) -> str:
    return " × ".join(f"{number:.5g}" for number in numbers)


def plane_axes(frame: Frame, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors along growing column, growing row, and the normal; rounding of the stored cosines is removed."""
    across, down = np.reshape(frame.orientation, (2, 3))
    lengths = np.linalg.norm([across, down], axis=1)
    if np.abs(lengths - 1).max() > 10 * _COSINE or abs(across @ down) > 10 * _COSINE:
        raise DataError(
            f"{where}: ImageOrientationPatient must be two perpendicular unit vectors, found {list(frame.orientation)} "
            f"in {frame.path.name}; {_EXPORT}."
        )
    across = across / lengths[0]
    down = down - (down @ across) * across
    down = down / np.linalg.norm(down)
    return across, down, np.cross(across, down)


def _check_depths(frames: Sequence[Frame], depths: np.ndarray, where: str) -> None:
    gaps = np.diff(depths)
    twice = np.flatnonzero(gaps < _SAME_PLACE)
    if twice.size:
        a, b = map(_name, frames[twice[0] : twice[0] + 2])
        raise DataError(
            f"{where}: {twice.size} of {len(frames)} slices lie where another one lies (first {a} and {b}); remove "
            "copies, or split time points and echoes into one series each."
        )
    step = (depths[-1] - depths[0]) / len(gaps)
    tolerance = min(max(0.1 * step, 0.1), 0.25 * step)
    even = depths[0] + step * np.arange(len(depths))
    if np.abs(depths - even).max() <= tolerance:
        return
    usual = float(np.median(gaps))
    widest = int(np.argmax(gaps))
    if gaps[widest] > 1.5 * usual:
        missing = int(np.sum(np.rint(gaps / usual) - 1))
        a, b = map(_name, frames[widest : widest + 2])
        raise DataError(
            f"{where}: about {max(missing, 1)} slices are missing: they lie {usual:.4g} mm apart, but {a} and {b} "
            f"{gaps[widest]:.4g} mm; copy or export the complete series."
        )
    raise DataError(
        f"{where}: the slices must be evenly spaced, found distances from {gaps.min():.4g} to {gaps.max():.4g} mm; "
        "resample the series onto a regular grid, or export a reconstruction with even spacing."
    )


def _check_shear(frames: Sequence[Frame], positions: np.ndarray, normal: np.ndarray, where: str) -> None:
    offsets = positions - positions[0]
    depths = offsets @ normal
    drift = np.linalg.norm(offsets - np.outer(depths, normal), axis=1)
    worst = int(np.argmax(drift))
    if drift[worst] <= max(0.1 * min(frames[0].spacing), 5e-4 * depths[-1]):
        return
    angle = float(np.degrees(np.arctan2(drift[-1], depths[-1])))
    raise DataError(
        f"{where} is sheared (gantry tilt): its slices are not stacked along their normal but {angle:.3g}° beside it ("
        f"{_name(frames[worst])} is {drift[worst]:.3g} mm off); correct the tilt by resampling (dcm2niix does) and "
        "give the result."
    )


def _name(frame: Frame) -> str:
    return f"{frame.path.name} frame {frame.index + 1}" if frame.index else frame.path.name
