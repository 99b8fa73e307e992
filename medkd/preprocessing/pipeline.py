"""One case from its native grid to the network's grid: turn, transpose, crop, normalise, resample."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.core.plan import Configuration, Plan
from medkd.core.workers import available_memory
from medkd.io.comparison import millimetres
from medkd.io.orientation import axis_code, turn, turn_geometry
from medkd.preprocessing.cropping import OUTSIDE, Box, box_slices, crop_box, fill_holes, nonzero_mask
from medkd.preprocessing.normalisation import normalise
from medkd.preprocessing.properties import CaseProperties
from medkd.preprocessing.resampling import resample_image, resample_label, resampled_shape


@dataclass(frozen=True)
class Preprocessed:
    """A case on the network's grid.

    Attributes:
        image: ``(C, z, y, x)`` float32, transposed.
        label: ``(z, y, x)`` int16, -1 outside the non-zero mask, or None.
        properties: the way back.
    """

    image: np.ndarray
    label: np.ndarray | None
    properties: CaseProperties


def preprocess_case(
    case: str,
    image: np.ndarray,
    geometry: Geometry,
    plan: Plan,
    configuration: Configuration,
    label: np.ndarray | None = None,
    *,
    overwrite: bool = False,
) -> Preprocessed:
    """Bring one case to the grid and intensities of ``configuration``; training and inference use this same function.

    Args:
        case: case id, for error texts.
        image: ``(C, z, y, x)`` on the native grid.
        geometry: the native grid.
        plan: gives the orientation, the transposition and the data set's intensities.
        configuration: gives spacing, normalisation and interpolation. A 2D configuration keeps the spacing across
            slices.
        label: ``(z, y, x)`` integers on the same grid, where there is one.
        overwrite: whether ``image`` may be used as scratch space, which saves a copy of it.

    Raises:
        DataError: image and label differ in shape, or the number of channels is not the plan's.
    """
    _check(case, image, geometry, configuration, label)
    turned = turned_grid(geometry, plan.orientation)
    image = _network_axes(image, geometry, plan)
    spacing = tuple((turned or geometry).spacing[axis] for axis in plan.transpose)

    mask = nonzero_mask(image)
    box = crop_box(image, mask, configuration.crop)
    inside = box_slices(box)
    image, mask = image[(slice(None), *inside)], mask[inside]
    if not overwrite or image.dtype != np.float32:
        image = np.array(image, dtype=np.float32, order="C")
    if label is not None or any(configuration.use_mask_for_norm):
        mask = fill_holes(mask)

    _normalise(case, image, mask, plan, configuration)
    target = (*spacing[: len(spacing) - configuration.rank], *configuration.spacing)
    shape = resampled_shape(image.shape[1:], spacing, target)
    _check_memory(case, image.shape, shape, spacing, target)
    image = resample_image(image, shape, spacing, target, configuration.resampling)
    if label is not None:
        label = _crop_label(_network_axes(label, geometry, plan), box, mask)
        label = resample_label(label, shape, spacing, target, configuration.resampling)
        label = np.ascontiguousarray(label)
    properties = CaseProperties(case, geometry, box, shape, turned)
    return Preprocessed(np.ascontiguousarray(image), label, properties)


def _network_axes(array: np.ndarray, geometry: Geometry, plan: Plan) -> np.ndarray:
    """A view of ``(..., z, y, x)``, turned and transposed as the plan says."""
    if plan.orientation is not None:
        array = turn(array, axis_code(geometry), plan.orientation)
    source = [axis - 3 for axis in plan.transpose]  # counted from the last axis, before which there may be channels
    return np.moveaxis(array, source, (-3, -2, -1))


def turned_grid(geometry: Geometry, orientation: str | None) -> Geometry | None:
    """The grid turned to an axis code; None where there is nothing to turn."""
    if orientation is None or axis_code(geometry) == orientation:
        return None
    return turn_geometry(geometry, orientation)


def _check_memory(
    case: str, stored: tuple[int, ...], shape: tuple[int, ...], spacing: tuple[float, ...], target: tuple[float, ...]
) -> None:
    """A wrong voxel size in a header makes a scan of any size; it is named before memory runs out."""
    channels, *sizes = stored
    needed = channels * prod(shape) * np.dtype(np.float32).itemsize
    if prod(shape) > prod(sizes) and needed > available_memory():
        before = " × ".join(map(str, sizes))
        after = " × ".join(map(str, shape))
        raise DataError(
            f"Case {case}: at the plan's spacing of {millimetres(target)} its {before} voxels of "
            f"{millimetres(spacing)} would become {after}, {needed / 1e9:.3g} GB, more than the memory; check the "
            "voxel size in its header."
        )


def _check(
    case: str, image: np.ndarray, geometry: Geometry, configuration: Configuration, label: np.ndarray | None
) -> None:
    if image.ndim != 4 or image.shape[1:] != tuple(geometry.shape):
        raise DataError(f"Case {case}: expected an image of shape (channels, {geometry.shape}), found {image.shape}.")
    if label is not None and label.shape != image.shape[1:]:
        raise DataError(
            f"Case {case}: image {image.shape[1:]} and label {label.shape} differ in shape; verify the raw data set."
        )
    if image.shape[0] != len(configuration.normalization):
        raise DataError(
            f"Case {case}: the plan expects {len(configuration.normalization)} channels, found {image.shape[0]}."
        )


def _normalise(case: str, image: np.ndarray, mask: np.ndarray, plan: Plan, configuration: Configuration) -> None:
    for index, channel in enumerate(image):
        scheme = configuration.normalization[index]
        statistics = plan.intensities[index] if index < len(plan.intensities) else None
        inside = mask if configuration.use_mask_for_norm[index] else None
        try:
            normalise(channel, scheme, statistics, inside)
        except DataError as error:
            raise DataError(f"Case {case}, channel {index}: {error}") from error


def _crop_label(label: np.ndarray, box: Box, mask: np.ndarray) -> np.ndarray:
    label = label[box_slices(box)].astype(np.int16, order="C")
    if not mask.all():
        label[(label == 0) & ~mask] = OUTSIDE
    return label
