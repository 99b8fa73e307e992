"""Faster R-CNN on torchvision's parts, taken apart so that a teacher can score a student's proposals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import (
    AnchorGenerator,
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.ops import MultiScaleRoIAlign, batched_nms, clip_boxes_to_image

from medkd.detection.base import Detections, DetectionTarget, Detector, DetectorOutputs, DetectorSpec, Family
from medkd.detection.parts import whole_scores
from medkd.detection.tv.assign import BACKGROUND, Assignment, assign, match_overlap
from medkd.detection.tv.backbones import CHANNELS, Pyramid
from medkd.detection.tv.dense import SMALLEST
from medkd.detection.tv.grid import AnchorGrid, boxes_from_deltas, deltas_from_boxes
from medkd.detection.tv.proposals import (
    Pool,
    asked,
    counts_of_levels,
    drawn,
    head_losses,
    images_of,
    matched,
    pooled,
    proposal_losses,
    suppressed,
)
from medkd.training.ranks import Ranks

_RATIOS = (0.5, 1.0, 2.0)
_POOLED, _WIDTH = 7, 1024
_MATCHING = partial(match_overlap, unsure=0.3, sure=0.7)


@dataclass(frozen=True)
class _Found:
    """What the proposing head says of the ``A`` anchors of every image.

    Attributes:
        flat: objectness ``(B · A, 1)``, logits.
        moves: deltas ``(B · A, 4)``.
        anchors: of every image, ``(A, 4)``.
        boxes: decoded, ``(B, A, 4)``, without gradient.
        counts: anchors per level.
    """

    flat: Tensor
    moves: Tensor
    anchors: Tensor
    boxes: Tensor
    counts: tuple[int, ...]

    @property
    def objectness(self) -> Tensor:
        """Logits ``(B, 1, A)``."""
        return self.flat.view(len(self.boxes), 1, -1)

    def whole(self, ranks: Ranks) -> _Found:
        """The same of all images of the batch, where every process has a part of them."""
        flat, moves, boxes = (ranks.gathered(part) for part in (self.flat, self.moves, self.boxes))
        return replace(self, flat=flat, moves=moves, boxes=boxes)


class FasterRCNN(Detector):
    """Region proposals on ``p2`` … ``p6``, and a box head on ``p2`` … ``p5``; losses equal torchvision's.

    Ren et al., "Faster R-CNN: towards real-time object detection with region proposal networks", NeurIPS 2015, arXiv
    1506.01497.

    The finest level's anchors have the side of RetinaNet's smallest, ``8 · anchor_scale`` pixels. It has no
    ``forward_from``: its head scores proposals, not the cells of one map.

    Args:
        spec: what to build.
        backbone: see :class:`~medkd.detection.tv.backbones.Pyramid`.
    """

    family: ClassVar[Family] = "torchvision"
    two_stage: ClassVar[bool] = True
    overlap: ClassVar[float] = 0.5

    def __init__(self, spec: DetectorSpec, backbone: str) -> None:
        super().__init__()
        self.spec = spec
        self.pyramid = Pyramid(backbone, first=2)
        self.taps = self.pyramid.taps("pyramid")
        names, strides = self.pyramid.names, self.pyramid.strides
        sizes = [(2 * spec.anchor_scale * stride,) for stride in strides]
        self.grid = AnchorGrid(names, strides, sizes, _RATIOS)
        self.proposer = RegionProposalNetwork(
            AnchorGenerator(tuple(sizes), (_RATIOS,) * len(sizes)),
            RPNHead(CHANNELS, self.grid.per_cell),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": 2000, "testing": 1000},
            nms_thresh=0.7,
        )
        self.scorer = RoIHeads(
            MultiScaleRoIAlign(names[:4], _POOLED, 2),
            TwoMLPHead(CHANNELS * _POOLED**2, _WIDTH),
            FastRCNNPredictor(_WIDTH, len(spec.categories) + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.0,  # this and the next two play no part: detect selects
            nms_thresh=self.overlap,
            detections_per_img=100,
        )

    @property
    def anchors(self) -> tuple[tuple[float, float], ...]:
        """See :attr:`medkd.detection.base.Detector.anchors`; they are those of the proposals."""
        return tuple((2 * self.spec.anchor_scale, ratio) for ratio in _RATIOS)

    def look(self, images: Tensor) -> tuple[dict[str, Tensor], _Found]:
        """See :meth:`medkd.detection.base.Detector.look`: the neck's maps, and what is proposed."""
        neck = self.pyramid(images)
        return neck, self._found(images, neck)

    def supervised(
        self,
        images: Tensor,
        seen: tuple[dict[str, Tensor], _Found],
        boxes: Sequence[Tensor],
        classes: Sequence[Tensor],
        ranks: Ranks,
    ) -> tuple[dict[str, Tensor], DetectorOutputs, DetectionTarget]:
        """See :meth:`medkd.detection.base.Detector.supervised`; anchors and proposals are drawn at random (by all
        processes alike), in eval mode always alike.
        """
        with _fixed_draw(not self.training):
            return self._supervise(images, seen[0], seen[1].whole(ranks), (boxes, classes), ranks)

    def losses_from_neck(
        self, images: Tensor, neck: dict[str, Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """See :meth:`medkd.detection.base.Detector.losses_from_neck`; levels that are missing in ``neck`` are its
        own.
        """
        own = {} if set(self.grid.names) <= set(neck) else self.pyramid(images)
        whole = {**own, **neck}
        maps = {name: whole[name] for name in self.grid.names}
        with _fixed_draw(not self.training):
            return self._supervise(images, maps, self._found(images, maps), (boxes, classes), Ranks())[0]

    def observe(self, images: Tensor, student: DetectorOutputs) -> DetectorOutputs:
        """See :meth:`medkd.detection.base.Detector.observe`; without proposals of the student's it scores its own."""
        neck = self.pyramid(images)
        found = self._found(images, neck)
        outputs = self._score(neck, student.proposals or self._proposals(images, found), images)
        return replace(outputs, objectness=found.objectness, boxes=found.boxes)

    def candidates(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`medkd.detection.base.Detector.candidates`; a box per proposal and class, which scores for that."""
        neck = self.pyramid(images)
        proposals = self._proposals(images, self._found(images, neck))
        outputs = self._score(neck, proposals, images, traced=True)
        assert outputs.deltas is not None
        decoded = self.scorer.box_coder.decode(outputs.deltas.flatten(1), proposals)
        boxes = clip_boxes_to_image(decoded, (images.shape[-2], images.shape[-1]))[:, 1:]
        wide = (boxes[..., 2:] - boxes[..., :2]).amin(-1) >= SMALLEST
        scores = outputs.logits.softmax(-1)[:, 1:] * wide
        own = torch.eye(scores.shape[1], device=scores.device)
        return boxes.reshape(1, -1, 4), (scores[:, :, None] * own).permute(2, 0, 1).flatten(1)[None]

    @torch.no_grad()
    def detect(
        self, images: Tensor, score: float = 0.001, overlap: float | None = None, most: int = 300
    ) -> list[Detections]:
        """See :meth:`medkd.detection.base.Detector.detect`."""
        overlap = self.overlap if overlap is None else overlap
        outputs = self.observe(images, DetectorOutputs(logits=images.new_zeros(0)))
        assert outputs.deltas is not None
        counts = [len(p) for p in outputs.proposals]
        decoded = self.scorer.box_coder.decode(outputs.deltas.flatten(1), list(outputs.proposals))
        boxes = clip_boxes_to_image(decoded.reshape(*outputs.deltas.shape), (images.shape[-2], images.shape[-1]))
        scores = outputs.logits.softmax(-1)
        parts = zip(boxes[:, 1:].split(counts), scores[:, 1:].split(counts), strict=True)
        return [_select(b, s, score, overlap, most) for b, s in parts]

    def _found(self, images: Tensor, neck: Mapping[str, Tensor]) -> _Found:
        """What the proposing head says of every anchor."""
        objectness, deltas = self.proposer.head([neck[name] for name in self.grid.names])
        counts = tuple(o[0].numel() for o in objectness)
        flat, moves = concat_box_prediction_layers([o.float() for o in objectness], [d.float() for d in deltas])
        anchors = self.grid.anchors(self.grid.levels(neck), images.device)
        boxes = boxes_from_deltas(moves.detach().view(len(images), -1, 4), anchors)
        return _Found(flat, moves, anchors, boxes, counts)

    def _proposals(self, images: Tensor, found: _Found) -> list[Tensor]:
        """The best of them per image, after non-maximum suppression."""
        sizes = [(images.shape[-2], images.shape[-1])] * len(images)
        proposals, _ = self.proposer.filter_proposals(found.boxes, found.flat, sizes, list(found.counts))
        return proposals

    def _score(
        self,
        neck: Mapping[str, Tensor],
        proposals: Sequence[Tensor],
        images: Tensor,
        *,
        traced: bool = False,
        counts: Sequence[int] | None = None,
    ) -> DetectorOutputs:
        """What the box head says of proposals, of which there are ``counts`` per level; an exporter traces the way in
        which torchvision pools.
        """
        maps = {name: neck[name].float() for name in self.grid.names}
        size, pool = (images.shape[-2], images.shape[-1]), self.scorer.box_roi_pool
        if traced:
            features = pool(maps, list(proposals), [size] * len(images))
        else:
            features = pooled(pool, maps, proposals, size, counts)
        logits, deltas = self.scorer.box_predictor(self.scorer.box_head(features))
        return DetectorOutputs(
            logits=logits.float(),
            features=maps,
            deltas=deltas.float().unflatten(-1, (-1, 4)),
            proposals=tuple(p.detach() for p in proposals),
        )

    def _supervise(
        self,
        images: Tensor,
        neck: Mapping[str, Tensor],
        first: _Found,
        annotated: tuple[Sequence[Tensor], Sequence[Tensor]],
        ranks: Ranks,
    ) -> tuple[dict[str, Tensor], DetectorOutputs, DetectionTarget]:
        """What :meth:`losses` gives: of images and maps of this process, and of everybody's proposals, boxes and
        classes.
        """
        boxes, classes = annotated
        truth = [own.float() for own in boxes]
        with torch.autocast(images.device.type, enabled=False):
            assignment = assign(_MATCHING, first.anchors, self.grid.levels(neck), truth, classes)
            pool = self._pool(images, first).joined(truth)
            known = [torch.cat(truth), images_of(truth), torch.cat(list(classes)) + 1]
            kinds, matches = matched(pool, known[0], known[1], known[2], self.scorer.proposal_matcher.high_threshold)
            own = ranks.part(len(boxes))
            places, chosen, counts = self._drawn(assignment, pool, kinds, own)
            found, moved = proposal_losses(first.flat.flatten(), first.moves, first.anchors, assignment, places)
        every = torch.cat(chosen)
        proposals = [pool.boxes[own] for own in chosen]
        outputs = self._score(neck, proposals[own.start : own.stop], images, counts=counts)
        outputs = replace(whole_scores(outputs, proposals, ranks), objectness=first.objectness, boxes=first.boxes)
        assert outputs.deltas is not None
        with torch.autocast(images.device.type, enabled=False):
            some = known[0] if len(known[0]) else pool.boxes.new_zeros(1, 4)  # which no proposal then looks at
            wanted = deltas_from_boxes(some[matches[every]], pool.boxes[every], self.scorer.box_coder.weights)
            kind, box = head_losses(outputs.logits, outputs.deltas, kinds[every], wanted)
        terms = {"objectness": found, "proposal": moved, "class": kind, "box": box}
        target = DetectionTarget(
            kinds[every][:, None],
            boxes=tuple(boxes),
            classes=tuple(classes),
            objects=_objects(assignment)[:, None],
        )
        return terms, outputs, target

    def _pool(self, images: Tensor, found: _Found) -> Pool:
        """The proposals that training draws from; those of :meth:`_proposals`, without waiting for each image."""
        scores, size = found.objectness[:, 0].detach(), (images.shape[-2], images.shape[-1])
        top = self.proposer._get_top_n_idx(scores, list(found.counts))
        levels = [torch.full((n,), i, device=images.device) for i, n in enumerate(found.counts)]
        boxes = clip_boxes_to_image(found.boxes.gather(1, top[..., None].expand(-1, -1, 4)), size)
        return suppressed(
            boxes,
            scores.gather(1, top).sigmoid(),
            torch.cat(levels)[top],
            size,
            self.proposer.nms_thresh,
            self.proposer.post_nms_top_n(),
        )

    def _drawn(
        self, assignment: Assignment, pool: Pool, kinds: Tensor, own: range
    ) -> tuple[tuple[Tensor, Tensor], list[Tensor], list[int]]:
        """Places among the anchors of all images, positives and negatives; per image those in the pool, rising; and how
        many of the latter lie on each level, of this process' images.
        """
        images, anchors = assignment.labels.shape
        rule = self.proposer.fg_bg_sampler
        background = assignment.labels == BACKGROUND
        first = drawn(assignment.positive, background, rule.batch_size_per_image, rule.positive_fraction)
        rule = self.scorer.fg_bg_sampler
        here = pool.image == torch.arange(images, device=kinds.device)[:, None]
        share = rule.positive_fraction
        second = drawn(here & (kinds >= 1), here & (kinds == 0), rule.batch_size_per_image, share)
        every, valid = second.every, second.valid
        mine = slice(own.start, own.stop)
        levels = counts_of_levels(self.scorer.box_roi_pool, pool.boxes[every[mine].flatten()], valid[mine].flatten())
        told = asked(torch.cat([first.counts.T.flatten(), second.counts.sum(1), levels]))
        rising = torch.where(valid, every, len(kinds)).sort(1).values
        positives, negatives, chosen = [], [], []
        for i in range(images):
            positives.append(first.positives[i, : told[i]].sort().values + i * anchors)
            negatives.append(first.negatives[i, : told[images + i]].sort().values + i * anchors)
            chosen.append(rising[i, : told[2 * images + i]])
        return (torch.cat(positives), torch.cat(negatives)), chosen, told[3 * images :]


def _objects(assignment: Assignment) -> Tensor:
    """What every anchor shows: 1 for an object, 0 for none, −1 where it is left out."""
    others = torch.where(assignment.labels == BACKGROUND, 0.0, -1.0)
    return torch.where(assignment.positive, 1.0, others)


def _select(boxes: Tensor, scores: Tensor, score: float, overlap: float, most: int) -> Detections:
    """The detections of one image from boxes ``(n, K, 4)`` and scores ``(n, K)``."""
    kinds = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    good = (scores > score) & ((boxes[..., 2:] - boxes[..., :2]).amin(-1) >= SMALLEST)
    found, values, classes = boxes[good], scores[good], kinds[good]
    keep = batched_nms(found, values, classes, overlap)[:most]
    return Detections(found[keep], values[keep], classes[keep])


@contextmanager
def _fixed_draw(fixed: bool) -> Iterator[None]:
    """Draw the same anchors and proposals every time, so that validation losses can be compared, and leave the
    generators as they were.
    """
    if not fixed:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
