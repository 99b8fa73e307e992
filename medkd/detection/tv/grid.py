"""Where anchors stand: levels, their cells, and anchors per cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

from medkd.detection.base import Level

_MOST_GROWTH = log(1000 / 16)  # of a side, so that the exponential stays finite


class AnchorGrid:
    """Anchors on the cells of a pyramid; cell ``(r, c)`` of stride ``s`` has its centre at ``(c s, r s)``, as in
    torchvision, unless another is given.

    Unlike torchvision's generator, strides are powers of two also where an image's side is no multiple of the coarsest
    one.

    Args:
        names: of the levels, finest first.
        strides: of the levels.
        sizes: per level, the sides in pixels of square anchors.
        ratios: height over width of the anchors of each size.
        centre: of a cell, as a share of the stride, instead of 0.
        exact: sides of anchors are not rounded to whole pixels.
    """

    def __init__(
        self,
        names: Sequence[str],
        strides: Sequence[int],
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float],
        *,
        centre: float = 0.0,
        exact: bool = False,
    ) -> None:
        self.names = tuple(names)
        self.strides = dict(zip(names, strides, strict=True))
        self._centre = centre
        shapes = AnchorGenerator(tuple(tuple(s) for s in sizes), (tuple(ratios),) * len(sizes)).cell_anchors
        if exact:
            shapes = [_exact_cell(of_level, ratios) for of_level in sizes]
        self._cells = dict(zip(names, shapes, strict=True))
        self._moved: dict[tuple[str, torch.device], Tensor] = {}

    @property
    def per_cell(self) -> int:
        """Anchors per cell, the same on all levels."""
        return len(self._cells[self.names[0]])

    def levels(self, maps: Mapping[str, Tensor]) -> tuple[Level, ...]:
        """The levels of neck maps ``(B, C, rows, columns)``, with their places among all anchors."""
        found, start = [], 0
        for name in self.names:
            rows, columns = maps[name].shape[-2:]
            stop = start + rows * columns * self.per_cell
            found.append(Level(name, self.strides[name], (rows, columns), start, stop))
            start = stop
        return tuple(found)

    def on_level(self, name: str, shape: Sequence[int], device: torch.device) -> Tensor:
        """Anchors ``(rows · columns · per cell, 4)`` of one level, row by row: left, top, right, bottom in pixels."""
        stride = self.strides[name]
        y, x = torch.meshgrid(
            *((torch.arange(n, device=device, dtype=torch.float32) + self._centre) * stride for n in shape),
            indexing="ij",
        )
        shifts = torch.stack((x, y, x, y), -1).reshape(-1, 1, 4)
        return (shifts + self._cell(name, device)).reshape(-1, 4)

    def _cell(self, name: str, device: torch.device) -> Tensor:
        """The anchors of one cell; they are copied to a device once."""
        if (name, device) not in self._moved:
            self._moved[name, device] = self._cells[name].to(device)
        return self._moved[name, device]

    def anchors(self, levels: Sequence[Level], device: torch.device) -> Tensor:
        """All anchors ``(A, 4)``, level by level."""
        return torch.cat([self.on_level(level.tap, level.shape, device) for level in levels])


def _exact_cell(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors of a cell in torchvision's order: all sizes of a ratio after each other."""
    anchors = []
    for ratio in ratios:
        for size in sizes:
            width, height = size / ratio**0.5, size * ratio**0.5
            anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(anchors)


def strides_of(levels: Sequence[Level], device: torch.device) -> Tensor:
    """The stride of every anchor, ``(A,)``."""
    return torch.cat([torch.full((level.stop - level.start,), float(level.stride), device=device) for level in levels])


def distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances ``(..., 4)`` from points ``(..., 2)`` to the left, top, right and bottom of boxes ``(..., 4)``;
    negative outside.
    """
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), -1)


def centres(boxes: Tensor) -> Tensor:
    """Centres ``(..., 2)`` of boxes ``(..., 4)``."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def deltas_from_boxes(boxes: Tensor, anchors: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """What :func:`boxes_from_deltas` would need to give these boxes ``(n, 4)`` of anchors ``(n, 4)``."""
    sizes, own = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    shift = (boxes[:, :2] + 0.5 * own - (anchors[:, :2] + 0.5 * sizes)) / sizes
    growth = (own / sizes).log()
    parts = (shift[:, 0], shift[:, 1], growth[:, 0], growth[:, 1])
    return torch.stack([part * weight for part, weight in zip(parts, weights, strict=True)], 1)


def boxes_from_deltas(raw: Tensor, anchors: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Boxes ``(B, a, 4)`` from shifts of the centre, as shares of the anchor's sides, and logarithms of size ratios.

    Girshick et al., "Rich feature hierarchies", CVPR 2014, arXiv 1311.2524. torchvision's decoder gives the same, and
    makes the host wait for the GPU twice in every call.

    Args:
        raw: ``(B, a, 4)``.
        anchors: ``(a, 4)``.
        weights: by which the four numbers of ``raw`` are divided.
    """
    sizes = anchors[:, 2:] - anchors[:, :2]
    middles = anchors[:, :2] + 0.5 * sizes
    shift = torch.stack([raw[..., 0] / weights[0], raw[..., 1] / weights[1]], -1)
    growth = torch.stack([raw[..., 2] / weights[2], raw[..., 3] / weights[3]], -1).clamp(max=_MOST_GROWTH)
    moved, half = shift * sizes + middles, 0.5 * growth.exp() * sizes
    return torch.cat([moved - half, moved + half], -1)
