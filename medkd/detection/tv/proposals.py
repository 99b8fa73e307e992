"""What a two-stage detector learns from: its proposals, which of them and of its anchors are drawn, and the losses.

All of it is torchvision's (``filter_proposals``, ``BalancedPositiveNegativeSampler``, ``compute_loss``,
``select_training_samples``, ``fastrcnn_loss``, ``MultiScaleRoIAlign``), but for the random numbers. But there every
image is suppressed, matched and sampled by itself, so that the host waits for its device a dozen times per image; here
it waits twice per batch: for the suppression, and for the numbers of samples and of proposals per level
(:func:`asked`), which are known together since the samples are drawn before anybody knows how many there are.
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


@dataclass(frozen=True)
class Draw:
    """What was drawn at random in every image: more places than count, since nobody waits to know how many do.

    Attributes:
        positives: places ``(B, p)``, of which the first ones of an image count.
        negatives: likewise, ``(B, q)``.
        counts: how many of both count in every image, ``(B, 2)``.
    """

    positives: Tensor
    negatives: Tensor
    counts: Tensor

    @property
    def every(self) -> Tensor:
        """Positives, then negatives, ``(B, p + q)``."""
        return torch.cat([self.positives, self.negatives], 1)

    @property
    def valid(self) -> Tensor:
        """Which of :attr:`every` count."""
        found = []
        for places, count in zip((self.positives, self.negatives), self.counts.unbind(1), strict=True):
            found.append(torch.arange(places.shape[1], device=places.device) < count[:, None])
        return torch.cat(found, 1)


def drawn(positive: Tensor, negative: Tensor, most: int, share: float) -> Draw:
    """Random places at which masks are true: of positives, and of negatives to fill up the rest.

    Args:
        positive: mask ``(B, n)``.
        negative: likewise, nowhere true where that one is.
        most: places of an image in all.
        share: of them that may be positives.
    """
    keys = torch.rand(positive.shape, device=positive.device)
    places = []
    for mask, number in ((positive, int(most * share)), (negative, most)):
        places.append(torch.where(mask, keys, -1.0).topk(min(number, mask.shape[1]), 1).indices)
    first = positive.sum(1).clamp(max=int(most * share))
    return Draw(places[0], places[1], torch.stack([first, torch.minimum(negative.sum(1), most - first)], 1))


def counts_of_levels(pool: Any, boxes: Tensor, valid: Tensor) -> Tensor:
    """How many boxes ``(n, 4)`` each map of a :func:`pooled` call will be asked for, of those that count ``(n,)``."""
    every = torch.arange(len(pool.featmap_names), device=boxes.device)
    if pool.map_levels is None:
        return torch.zeros_like(every)
    return ((pool.map_levels([boxes]) == every[:, None]) & valid).sum(1)


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


def pooled(
    pool: Any,
    maps: dict[str, Tensor],
    boxes: Sequence[Tensor],
    size: tuple[int, int],
    counts: Sequence[int] | None = None,
) -> Tensor:
    """What torchvision's ``MultiScaleRoIAlign`` gives for boxes of every image.

    Args:
        pool: such a module, which knows its levels since its first call.
        maps: of the neck.
        boxes: per image, ``(n, 4)``.
        size: rows and columns of the images.
        counts: of :func:`counts_of_levels`; None asks for them, and the host waits.
    """
    features = [maps[name] for name in pool.featmap_names]
    if pool.map_levels is None or pool.scales is None or sum(map(len, boxes)) == 0:
        found: Tensor = pool(maps, list(boxes), [size] * len(boxes))
        return found
    rois = torch.cat([images_of(boxes)[:, None].to(boxes[0]), torch.cat(list(boxes))], 1)
    levels = pool.map_levels(list(boxes))
    order = levels.argsort(stable=True)
    if counts is None:
        counts = asked((levels == torch.arange(len(features), device=levels.device)[:, None]).sum(1))
    parts = []
    for own, scale, places in zip(features, pool.scales, order.split(list(counts)), strict=True):
        parts.append(roi_align(own, rois[places], pool.output_size, scale, pool.sampling_ratio))
    return torch.cat(parts)[order.argsort()]
