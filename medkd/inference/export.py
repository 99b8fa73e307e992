"""From logits on the network's grid to label maps on the native grid, slab by slab."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.labels import LabelSpec
from medkd.core.plan import Configuration, Plan
from medkd.inference.late_head import LateHead
from medkd.preprocessing.properties import CaseProperties
from medkd.preprocessing.resampling import axis_matrix
from medkd.runtime.decoding import SLAB_BYTES, logits_orders

_LOGIT_BYTES = 2**20  # of logits that are made of features at a time, for each thread


class GrowingLogits:
    """Logits ``(K, z, y, x)``, or features of which logits are made later, that come while they are asked for, from the
    first slice to the last.

    Args:
        pieces: ``(K, slices, y, x)``, one behind the other, small ones.
        shape: of all together.
    """

    def __init__(self, pieces: Iterator[Tensor], shape: Sequence[int]) -> None:
        self.shape = torch.Size(shape)
        self._pieces = pieces
        self._held: list[Tensor] = []
        self._first = self._last = 0

    def between(self, first: int, last: int) -> Tensor:
        """The slices from ``first`` to ``last``, which is not among them; what lies before is forgotten."""
        while self._last < last:
            self._held.append(next(self._pieces))
            self._last += self._held[-1].shape[1]
        while self._held and self._first + self._held[0].shape[1] <= first:
            self._first += self._held.pop(0).shape[1]
        # what is joined is not kept: it would hold every slice, since each is asked for together with its neighbour
        joined = self._held[0] if len(self._held) == 1 else torch.cat(self._held, dim=1)
        return joined[:, first - self._first : last - self._first]


Logits = Tensor | np.ndarray | GrowingLogits


def logits_to_labels(
    logits: Logits,
    properties: CaseProperties,
    plan: Plan,
    configuration: Configuration,
    labels: LabelSpec,
    head: LateHead | None = None,
) -> np.ndarray:
    """Label map in the native grid.

    The logits are resampled (linearly, or by the plan's orders) to the cropped native box and decoded at once, one slab
    of slices after the other, so that no more than ``SLAB_BYTES`` of resampled logits exist. Voxels outside the crop
    are background.

    Args:
        logits: ``(K, z, y, x)`` on the preprocessed grid, axes in the plan's order; they may be made meanwhile.
        properties: the way back, from preprocessing.
        plan: gives the axis order.
        configuration: gives the network's spacing and the interpolation orders.
        labels: decodes logits to label values.
        head: what makes logits of resampled features, where ``logits`` are those.

    Returns:
        ``(z, y, x)``, shape and axis order of ``properties.geometry``, uint8, or int16 where a label is above 255.
    """
    source = logits if isinstance(logits, GrowingLogits) else _tensor(logits)
    native = tuple(properties.grid.shape[a] for a in plan.transpose)
    result = np.zeros(native, dtype=np.uint8 if labels.values[-1] < 256 else np.int16)
    box = result[tuple(slice(*c) for c in properties.crop)]
    with torch.inference_mode():
        orders = logits_orders(properties, plan, configuration)
        for rows, slab in _through(source, box.shape, orders[0]):
            if head is None:
                decoded = _decoded(slab, box.shape[1:], orders[1:], labels)
            else:
                decoded = _decoded_features(_in_plane(slab, box.shape[1:], orders[1:]), head, labels)
            box[rows] = decoded.cpu().numpy()
    return np.ascontiguousarray(properties.turn_back(result.transpose(plan.transpose_back)))


def logits_to_probabilities(
    logits: Tensor | np.ndarray, properties: CaseProperties, plan: Plan, configuration: Configuration, labels: LabelSpec
) -> np.ndarray:
    """Probabilities in the native grid: softmax (or sigmoid for regions) of the resampled logits.

    Args:
        logits: as for :func:`logits_to_labels`.
        properties: as for :func:`logits_to_labels`.
        plan: as for :func:`logits_to_labels`.
        configuration: as for :func:`logits_to_labels`.
        labels: as for :func:`logits_to_labels`.

    Returns:
        ``(K, z, y, x)`` float16, nnU-Net's layout; outside the crop the background of plain labels has probability 1.
    """
    logits = _tensor(logits)
    native = tuple(properties.grid.shape[a] for a in plan.transpose)
    result = np.zeros((logits.shape[0], *native), dtype=np.float16)
    if not labels.regions:
        result[0] = 1
    box = result[(slice(None), *(slice(*c) for c in properties.crop))]
    with torch.inference_mode():
        for rows, slab in resampled_slabs(logits, box.shape[1:], logits_orders(properties, plan, configuration)):
            box[:, rows] = labels.probabilities(slab, dim=0).half().cpu().numpy()
    stored = result.transpose(0, *(a + 1 for a in plan.transpose_back))
    return np.ascontiguousarray(properties.turn_back(stored))


def resampled_slabs(
    logits: Tensor | GrowingLogits, shape: tuple[int, ...], orders: tuple[int, ...]
) -> Iterator[tuple[slice, Tensor]]:
    """Resample logits ``(K, z, y, x)`` to ``(K, *shape)`` piece by piece along the first axis.

    Args:
        logits: on the preprocessed grid.
        shape: size of the target box.
        orders: interpolation order per axis.

    Yields:
        The rows of the first axis, and the resampled logits ``(K, rows, *shape[1:])`` float32.
    """
    for part, slab in _through(logits, shape, orders[0]):
        yield part, _in_plane(slab, shape[1:], orders[1:])


def _decoded(slab: Tensor, plane: tuple[int, ...], orders: tuple[int, ...], labels: LabelSpec) -> Tensor:
    """Label values of slices whose planes are still the network's; of large planes few outputs are resampled at a time,
    so that they stay in the cache.
    """
    together = max(1, SLAB_BYTES // (4 * slab.shape[1] * prod(plane)))
    if labels.regions or together >= len(slab):
        return labels.decode(_in_plane(slab, plane, orders))
    some = _in_plane(slab[:together], plane, orders)
    highest, label = some.amax(0), labels.decode(some)
    for first in range(together, len(slab), together):
        some = _in_plane(slab[first : first + together], plane, orders)
        values = some.amax(0)
        label = torch.where(values > highest, labels.decode(some) + first, label)
        highest = torch.maximum(highest, values)
    return label


def _decoded_features(features: Tensor, head: LateHead, labels: LabelSpec) -> Tensor:
    """Label values ``(rows, y, x)`` of resampled features ``(C, rows, y, x)``; of few voxels at a time, so that their
    logits stay in the cache.
    """
    voxels = max(1, torch.get_num_threads() * _LOGIT_BYTES // (4 * len(head.weight)))
    pieces = features.flatten(1).split(voxels, dim=1)
    return torch.cat([labels.decode(head.logits(piece)) for piece in pieces]).view(features.shape[1:])


def _through(logits: Tensor | GrowingLogits, shape: tuple[int, ...], order: int) -> Iterator[tuple[slice, Tensor]]:
    """Logits resampled along the first axis alone: rows of it, and ``(K, rows, y, x)``."""
    outputs, depth = logits.shape[:2]
    matrix = torch.tensor(axis_matrix(depth, shape[0], order), dtype=torch.float32)
    rows = max(1, SLAB_BYTES // (4 * outputs * shape[1] * shape[2]))
    for start in range(0, shape[0], rows):
        part = slice(start, min(start + rows, shape[0]))
        if depth == shape[0]:
            slab = _between(logits, part.start, part.stop)
        else:
            used = matrix[part].abs().sum(0).nonzero()
            first, last = int(used[0]), int(used[-1]) + 1
            source = _between(logits, first, last)
            mixing = matrix[part, first:last].to(source.device)
            slab = torch.matmul(mixing, source.flatten(2)).unflatten(2, logits.shape[2:])
        yield part, slab


def _between(logits: Tensor | GrowingLogits, first: int, last: int) -> Tensor:
    """Slices of the first axis, as float32."""
    found = logits.between(first, last) if isinstance(logits, GrowingLogits) else logits[:, first:last]
    return found.float()


def _in_plane(slab: Tensor, shape: tuple[int, ...], orders: tuple[int, ...]) -> Tensor:
    if slab.shape[2:] == torch.Size(shape):
        return slab
    if orders == (1, 1):  # the same interpolation as the matrices', but it reads four neighbours instead of whole lines
        # planes as a batch: torch takes another way with three channels, as of pictures, which is half as fast
        planes = slab.reshape(-1, 1, *slab.shape[2:])
        finer = F.interpolate(planes, size=tuple(shape), mode="bilinear", align_corners=False)
        return finer.view(*slab.shape[:2], *shape)
    y, x = (
        torch.tensor(axis_matrix(size, new, order), dtype=torch.float32, device=slab.device)
        for size, new, order in zip(slab.shape[2:], shape, orders, strict=True)
    )
    return torch.matmul(torch.matmul(y, slab), x.T)


def _tensor(logits: Tensor | np.ndarray) -> Tensor:
    return logits if isinstance(logits, Tensor) else torch.from_numpy(np.ascontiguousarray(logits))
