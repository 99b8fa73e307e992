"""Which anchor learns which box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from medkd.detection.base import Level
from medkd.detection.tv.grid import centres, distances, strides_of

BACKGROUND, IGNORED = -1, -2
_UNSURE, _SURE = 0.4, 0.5  # overlaps from which on an anchor is no background, and has a box
_CANDIDATES = 9
_INSIDE = 0.01  # pixels
_SMALLEST_SIDE = 1e-6  # pixels
_POINTS_SCALE = 4  # strides that the side of a box of a level has
Matching = Callable[[Tensor, Sequence[Level], Tensor], Tensor]
"""(anchors ``(A, 4)``, levels, boxes ``(n, 4)`` with n > 0) → place of each anchor's box, −1 or −2, ``(A,)``."""


@dataclass(frozen=True)
class Assignment:
    """What the anchors of a batch learn.

    Attributes:
        labels: ``(B, A)``, the class of the anchor's box, −1 for background, −2 for an anchor that is left out.
        boxes: ``(B, A, 4)``, the anchor's box in pixels; zeros where it has none.
    """

    labels: Tensor
    boxes: Tensor

    @property
    def positive(self) -> Tensor:
        """Which anchors have a box, ``(B, A)``."""
        return self.labels >= 0

    def places(self) -> Tensor:
        """Where those anchors stand among all of the batch, ``(n,)`` of ``B · A``; the one thing that a host waits for.

        Numbers pick them without a further word from the device, which a mask would need at every use.
        """
        return self.positive.flatten().nonzero().squeeze(1)


def assign(
    matching: Matching, anchors: Tensor, levels: Sequence[Level], boxes: Sequence[Tensor], classes: Sequence[Tensor]
) -> Assignment:
    """Match the anchors ``(A, 4)``, or each image's own ``(B, A, 4)``, of every image of a batch; in an image without
    boxes all are background.
    """
    labels, matched = [], []
    for of_image, own, kinds in zip(anchors.expand(len(boxes), -1, -1), boxes, classes, strict=True):
        if len(own) == 0:
            labels.append(torch.full((len(of_image),), BACKGROUND, dtype=torch.int64, device=anchors.device))
            matched.append(torch.zeros_like(of_image))
            continue
        places = matching(of_image, levels, own)
        positive = places >= 0
        labels.append(torch.where(positive, kinds[places.clamp(min=0)], places))
        matched.append(torch.where(positive[:, None], own[places.clamp(min=0)], 0.0))
    return Assignment(torch.stack(labels), torch.stack(matched))


def match_overlap(
    anchors: Tensor, levels: Sequence[Level], boxes: Tensor, unsure: float = _UNSURE, sure: float = _SURE
) -> Tensor:
    """RetinaNet's rule: the box of highest overlap from 0.5 on, background below 0.4 (or other thresholds), nothing
    between; a box's best anchors always get it.

    Lin et al., "Focal loss for dense object detection", ICCV 2017, arXiv 1708.02002.
    """
    overlaps = box_iou(boxes, anchors)
    found, places = _by_overlap(overlaps, unsure, sure)
    best_of_a_box = (overlaps == overlaps.amax(1, keepdim=True)).any(0)
    return torch.where(best_of_a_box, places, found)


def _by_overlap(overlaps: Tensor, unsure: float = _UNSURE, sure: float = _SURE) -> tuple[Tensor, Tensor]:
    """Place of each anchor's box, by thresholds and without, from overlaps ``(n, A)``."""
    highest, places = overlaps.max(0)
    others = torch.where(highest < unsure, BACKGROUND, IGNORED)
    return torch.where(highest < sure, others, places), places


def match_points(anchors: Tensor, levels: Sequence[Level], boxes: Tensor, radius: float = 1.5) -> Tensor:
    """FCOS' rule: points in a box and within ``radius`` strides of its centre, each level for its range of sizes; the
    smallest box wins.

    A level of stride ``s`` takes boxes whose farthest side is ``4 s`` to ``8 s`` away; the finest also nearer, the
    coarsest farther.

    Tian et al., "FCOS: fully convolutional one-stage object detection", ICCV 2019, arXiv 1904.01355.
    """
    strides = strides_of(levels, anchors.device)
    points = centres(anchors)
    sides = distances(points[:, None], boxes[None].expand(len(points), -1, -1))
    near = (points[:, None] - centres(boxes)[None]).abs().amax(-1) < radius * strides[:, None]
    lower, upper = 4 * strides, 8 * strides
    lower[: levels[0].stop] = 0
    upper[levels[-1].start :] = torch.inf
    farthest = sides.amax(-1)
    fits = near & (sides.amin(-1) > 0) & (farthest > lower[:, None]) & (farthest < upper[:, None])
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))[None].expand_as(fits)
    smallest, places = torch.where(fits, area, torch.inf).min(1)
    return torch.where(smallest.isfinite(), places, BACKGROUND)


def match_adaptively(anchors: Tensor, levels: Sequence[Level], boxes: Tensor) -> Tensor:
    """ATSS: per box, an overlap threshold from the statistics of its candidates.

    Candidates of a box are the 9 anchors per level with the nearest centres; positive are those with an overlap of at
    least mean + standard deviation of the candidates' overlaps, whose centre is in the box. An anchor of several boxes
    takes that of highest overlap.

    Zhang et al., "Bridging the gap between anchor-based and anchor-free detection via adaptive training sample
    selection", CVPR 2020, arXiv 1912.02424.
    """
    overlaps = box_iou(anchors, boxes)
    points = centres(anchors)
    away = torch.cdist(points, centres(boxes), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = [
        away[level.start : level.stop].topk(min(_CANDIDATES, level.stop - level.start), dim=0, largest=False).indices
        + level.start
        for level in levels
    ]
    candidates = torch.cat(nearest)
    found = overlaps.gather(0, candidates)
    threshold = found.mean(0) + found.std(0)
    inside = distances(points[:, None], boxes[None].expand(len(points), -1, -1)).amin(-1) > _INSIDE
    positive = torch.zeros_like(inside).scatter(0, candidates, found >= threshold) & inside
    best, places = torch.where(positive, overlaps, -1.0).max(1)
    return torch.where(best >= 0, places, BACKGROUND)


def match_nearest(anchors: Tensor, levels: Sequence[Level], boxes: Tensor) -> Tensor:
    """RepPoints' rule for its first points: a box has the nearest cell of the level of its size; of the boxes of a cell
    the nearest has it.

    A box belongs to stride ``2^⌊log₂(√(w h) / 4)⌋`` within those that there are; distances between centres are counted
    in the box' width and height.

    Yang et al., "RepPoints: point set representation for object detection", ICCV 2019, arXiv 1904.11490.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=_SMALLEST_SIDE)
    size = (sides / _POINTS_SCALE).log2().mean(1).trunc()
    strides = strides_of(levels, anchors.device).log2().round()
    size = size.clamp(strides.min(), strides.max())
    away = ((centres(anchors)[:, None] - centres(boxes)[None]) / sides).norm(dim=-1)
    away = torch.where(strides[:, None] == size[None], away, torch.inf)
    nearest, places = away.min(0)
    chosen = torch.full_like(away, torch.inf).scatter(0, places[None], nearest[None])
    closest, matched = chosen.min(1)
    return torch.where(closest.isfinite(), matched, BACKGROUND)


def match_found(anchors: Tensor, levels: Sequence[Level], boxes: Tensor) -> Tensor:
    """RepPoints' rule for boxes that its first points found: RetinaNet's thresholds, but a box' best anchor gets that
    box (the last one, where it is the best of several), and only where they meet.
    """
    overlaps = box_iou(boxes, anchors)
    best = (overlaps == overlaps.amax(1, keepdim=True)) & (overlaps > 0)
    order = torch.arange(1, len(boxes) + 1, device=boxes.device)[:, None]
    last = (best * order).amax(0) - 1
    return torch.where(last >= 0, last, _by_overlap(overlaps)[0])
