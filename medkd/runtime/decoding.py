"""From logits on the network's grid to label maps and probabilities on the native grid: numpy arrays, slab by slab."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medkd.core.labels import LabelSpec, first_highest
from medkd.core.plan import Configuration, Plan
from medkd.preprocessing.properties import CaseProperties
from medkd.preprocessing.resampling import axis_matrix, axis_orders

SLAB_BYTES = 4 * 2**20
"""Resampled logits held at a time; larger slabs leave the cache and gain nothing."""


def decode_labels(
    logits: np.ndarray, properties: CaseProperties, plan: Plan, configuration: Configuration, labels: LabelSpec
) -> np.ndarray:
    """Label map in the native grid; voxels outside the crop are background.

    Args:
        logits: ``(K, z, y, x)`` float32 on the preprocessed grid, axes in the plan's order.
        properties: the way back, from preprocessing.
        plan: gives the axis order.
        configuration: gives the network's spacing and the interpolation orders.
        labels: decodes logits to label values.

    Returns:
        ``(z, y, x)``, shape and axis order of ``properties.geometry``, uint8, or int16 where a label is above 255.
    """
    native = tuple(properties.grid.shape[axis] for axis in plan.transpose)
    result = np.zeros(native, dtype=_label_type(labels))
    box = result[tuple(slice(*edges) for edges in properties.crop)]
    for rows, slab in resampled_slabs(logits, box.shape, logits_orders(properties, plan, configuration)):
        box[rows] = labels_of(slab, labels, threshold=0)
    return np.ascontiguousarray(properties.turn_back(result.transpose(plan.transpose_back)))


def decode_probabilities(
    logits: np.ndarray, properties: CaseProperties, plan: Plan, configuration: Configuration, labels: LabelSpec
) -> np.ndarray:
    """Probabilities in the native grid ``(K, z, y, x)`` float16: softmax, or sigmoid for regions.

    Outside the crop the background of plain labels has probability 1. Arguments as for :func:`decode_labels`.
    """
    native = tuple(properties.grid.shape[axis] for axis in plan.transpose)
    result = np.zeros((logits.shape[0], *native), dtype=np.float16)
    if not labels.regions:
        result[0] = 1
    box = result[(slice(None), *(slice(*edges) for edges in properties.crop))]
    for rows, slab in resampled_slabs(logits, box.shape[1:], logits_orders(properties, plan, configuration)):
        box[:, rows] = _sigmoid(slab) if labels.regions else _softmax(slab)
    stored = result.transpose(0, *(axis + 1 for axis in plan.transpose_back))
    return np.ascontiguousarray(properties.turn_back(stored))


def logits_orders(properties: CaseProperties, plan: Plan, configuration: Configuration) -> tuple[int, ...]:
    """Interpolation order of the logits along each axis: the anisotropy rule, from the network's spacing to the native
    one.
    """
    native = tuple(properties.grid.spacing[axis] for axis in plan.transpose)
    network = (*native[: 3 - configuration.rank], *configuration.spacing)
    return axis_orders(network, native, configuration.resampling, "logits")


def resampled_slabs(
    logits: np.ndarray, shape: tuple[int, ...], orders: tuple[int, ...]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Resample logits ``(K, z, y, x)`` to ``(K, *shape)`` piece by piece along the first axis.

    Yields:
        The rows of the first axis, and the resampled logits ``(K, rows, *shape[1:])`` float32.
    """
    through, down, along = (
        axis_matrix(size, new, order).astype(np.float32)
        for size, new, order in zip(logits.shape[1:], shape, orders, strict=True)
    )
    rows = max(1, SLAB_BYTES // (4 * logits.shape[0] * shape[1] * shape[2]))
    for start in range(0, shape[0], rows):
        part = slice(start, min(start + rows, shape[0]))
        used = np.flatnonzero(np.abs(through[part]).sum(0))
        source = slice(int(used[0]), int(used[-1]) + 1)
        lines = logits[:, source].reshape(logits.shape[0], source.stop - source.start, -1)
        slab = np.matmul(through[part, source], lines).reshape(logits.shape[0], -1, *logits.shape[2:])
        yield part, np.matmul(np.matmul(down, slab), along.T)


def labels_of(scores: np.ndarray, labels: LabelSpec, *, threshold: float) -> np.ndarray:
    """Label map ``(z, y, x)`` of scores ``(K, z, y, x)``: the class with the highest one, or the regions above a
    threshold (0 of logits, 0.5 of probabilities) painted in their order.
    """
    if not labels.regions:
        return first_highest(scores).astype(_label_type(labels))
    result = np.zeros(scores.shape[1:], _label_type(labels))
    for channel, value in enumerate(labels.order):
        result[scores[channel] > threshold] = value
    return result


def _label_type(labels: LabelSpec) -> type[np.generic]:
    return np.uint8 if labels.values[-1] < 256 else np.int16


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def _softmax(logits: np.ndarray) -> np.ndarray:
    scaled = np.exp(logits - logits.max(0))
    return scaled / scaled.sum(0)
