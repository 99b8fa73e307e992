"""What a two-stage detector learns from: its proposals, which of them and of its anchors are drawn, and the losses.

All of it is torchvision's (``filter_proposals``, ``BalancedPositiveNegativeSampler``, ``compute_loss``,
``select_training_samples``, ``fastrcnn_loss``, ``MultiScaleRoIAlign``), with the same random numbers. But there every
image is suppressed, matched and sampled by itself, so that the host waits for its device a dozen times per image; here
it waits three times per batch: for the suppression, for the numbers of samples, and for the numbers of proposals per
level (:func:`asked`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, nms, roi_align

from medkd.detection.tv.assign import Assignment
from medkd.detection.tv.grid import deltas_from_boxes

_BETA = 1 / 9  # below which the losses of boxes are squares
_SMALLEST = 1e-3  # pixels of a proposal's side


@dataclass(frozen=True)
class Pool:
    """Boxes of all images of a batch, one after another.

    Attributes:
        boxes: ``(n, 4)``.
        image: of each, ``(n,)``, rising.
        valid: which of them count, ``(n,)``.
    """

    boxes: Tensor
    image: Tensor
    valid: Tensor

    def joined(self, drawn: Sequence[Tensor]) -> Pool:
        """With further boxes of every image behind its own."""
        boxes = torch.cat([self.boxes, *drawn])
        image = torch.cat([self.image, images_of(drawn)])
        valid = torch.cat([self.valid, self.valid.new_ones(len(image) - len(self.image))])
        order = image.argsort(stable=True)
        return Pool(boxes[order], image[order], valid[order])


def asked(numbers: Tensor) -> Any:
    """Numbers for the host, which waits for them."""
    return numbers.tolist()


def images_of(drawn: Sequence[Tensor]) -> Tensor:
    """The number of the image of each of these boxes."""
    return torch.cat([torch.full((len(own),), i, device=own.device) for i, own in enumerate(drawn)])


def per_image(mask: Tensor, image: Tensor, images: int) -> Tensor:
    """How often a mask ``(n,)`` is true in each image."""
    every = torch.arange(images, device=image.device)
    return (mask & (image == every[:, None])).sum(1)


def suppressed(boxes: Tensor, scores: Tensor, levels: Tensor, size: tuple[int, int], overlap: float, most: int) -> Pool:
    """The best boxes of every image after non-maximum suppression within each level, from the highest score down.

    Args:
        boxes: ``(B, n, 4)``, within the image.
        scores: ``(B, n)``, not negative.
        levels: ``(B, n)``.
        size: rows and columns of the images.
        overlap: beyond which the weaker of two boxes goes.
        most: boxes per image.
    """
    images, count = scores.shape
    wide = ((boxes[..., 2:] - boxes[..., :2]) >= _SMALLEST).all(-1)
    image = torch.arange(images, device=boxes.device)[:, None].expand(-1, count)
    # images stand side by side and levels below each other, so that no box meets one of another image or level
    apart = torch.stack([image * (size[1] + 1), levels * (size[0] + 1)], -1).to(boxes)
    moved = (boxes + torch.cat([apart, apart], -1)).flatten(0, 1)
    keep = nms(moved, torch.where(wide, scores, -1.0).flatten(), overlap)
    order = (keep // count).argsort(stable=True)
    keep = keep[order]
    own = keep // count
    kept = per_image(torch.ones_like(own, dtype=torch.bool), own, images)
    rank = torch.arange(len(own), device=own.device) - (kept.cumsum(0) - kept)[own]
    return Pool(boxes.flatten(0, 1)[keep], own, wide.flatten()[keep] & (rank < most))


def matched(pool: Pool, boxes: Tensor, image: Tensor, kinds: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """What the boxes of a pool show: the kind of the true box of highest overlap from ``least`` on, else 0; −1 where
    they do not count. And the place of that true box.

    Args:
        pool: of all images.
        boxes: the true ones of all images, ``(m, 4)``.
        image: of each.
        kinds: from 1 on.
        least: overlap.
    """
    if len(boxes) == 0:
        nothing = torch.zeros_like(pool.image)
        return torch.where(pool.valid, nothing, -1), nothing
    overlaps = torch.where(image[:, None] == pool.image, box_iou(boxes, pool.boxes), -1.0)
    highest, places = overlaps.max(0)
    return torch.where(pool.valid, torch.where(highest >= least, kinds[places], 0), -1), places


def drawn_places(masks: Sequence[Tensor], counts: Sequence[int], most: int, share: float) -> tuple[Tensor, Tensor]:
    """Random places at which a mask is true, rising: of positives, and of negatives to fill up the rest.

    Args:
        masks: of positives and of negatives, ``(n,)``.
        counts: how often they are true.
        most: places in all.
        share: of them that may be positives.
    """
    positives = min(counts[0], int(most * share))
    wanted = (positives, min(counts[1], most - positives))
    found = []
    for mask, count, number in zip(masks, counts, wanted, strict=True):
        chosen = torch.randperm(count, device=mask.device)[:number]
        found.append(_places(mask, count)[chosen].sort().values)
    return found[0], found[1]


def _places(mask: Tensor, count: int) -> Tensor:
    """Where a mask is true, ``count`` places; nobody waits for them."""
    target = torch.where(mask, mask.cumsum(0) - 1, count)
    every = torch.arange(len(mask), device=mask.device)
    return torch.zeros(count + 1, dtype=torch.int64, device=mask.device).scatter_(0, target, every)[:count]


def proposal_losses(
    objectness: Tensor, moves: Tensor, anchors: Tensor, assignment: Assignment, places: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Of objectness and of boxes, over the drawn anchors.

    Args:
        objectness: logits ``(B · A,)``.
        moves: ``(B · A, 4)``.
        anchors: ``(A, 4)``.
        assignment: what they learn.
        places: of positives and negatives among all of the batch.
    """
    positive, every = places[0], torch.cat(places)
    wanted = deltas_from_boxes(assignment.boxes.flatten(0, 1)[positive], anchors[positive % len(anchors)])
    moved = F.smooth_l1_loss(moves[positive], wanted, beta=_BETA, reduction="sum") / len(every)
    truth = assignment.positive.flatten()[every].to(objectness.dtype)
    return F.binary_cross_entropy_with_logits(objectness[every], truth), moved


def head_losses(logits: Tensor, deltas: Tensor, kinds: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Of classes and of boxes, over the drawn proposals.

    Args:
        logits: ``(n, K + 1)``.
        deltas: ``(n, K + 1, 4)``.
        kinds: ``(n,)``, 0 is background.
        wanted: deltas ``(n, 4)``; anything where the kind is background.
    """
    own = deltas[torch.arange(len(kinds), device=kinds.device), kinds]
    positive = (kinds > 0)[:, None]
    apart = F.smooth_l1_loss(own, torch.where(positive, wanted, own.detach()), beta=_BETA, reduction="none")
    return F.cross_entropy(logits, kinds), torch.where(positive, apart, 0.0).sum() / len(kinds)


def pooled(pool: Any, maps: dict[str, Tensor], boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """What torchvision's ``MultiScaleRoIAlign`` gives for boxes of every image.

    Args:
        pool: such a module, which knows its levels since its first call.
        maps: of the neck.
        boxes: per image, ``(n, 4)``.
        size: rows and columns of the images.
    """
    features = [maps[name] for name in pool.featmap_names]
    if pool.map_levels is None or pool.scales is None or sum(map(len, boxes)) == 0:
        found: Tensor = pool(maps, list(boxes), [size] * len(boxes))
        return found
    rois = torch.cat([images_of(boxes)[:, None].to(boxes[0]), torch.cat(list(boxes))], 1)
    levels = pool.map_levels(list(boxes))
    order = levels.argsort(stable=True)
    counts = asked((levels == torch.arange(len(features), device=levels.device)[:, None]).sum(1))
    parts = []
    for own, scale, places in zip(features, pool.scales, order.split(counts), strict=True):
        parts.append(roi_align(own, rois[places], pool.output_size, scale, pool.sampling_ratio))
    return torch.cat(parts)[order.argsort()]
