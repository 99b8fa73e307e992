"""RetinaNet, FCOS, ATSS and GFL: assignment, decoding and loss of each."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from medkd.detection.base import DetectorOutputs, DetectorSpec
from medkd.detection.tv.assign import IGNORED, Assignment, Matching, match_adaptively, match_overlap, match_points
from medkd.detection.tv.dense import DenseDetector, targets_of_classes
from medkd.detection.tv.grid import boxes_from_deltas, centres, distances, strides_of
from medkd.detection.tv.head import HeadShape
from medkd.detection.tv.losses import (
    centreness,
    distribution_focal_loss,
    expectation,
    overlap_loss,
    paired_overlap,
    quality_focal_loss,
)

BINS = 17
"""Bins of GFL's distributions: distances of 0 to 16 strides."""
_BOX_WEIGHT = 2.0  # of ATSS and GFL
_DISTRIBUTION_WEIGHT = 0.25
_BELOW_LAST = 0.1  # a target stays this far below the last bin
_OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
_RATIOS = (0.5, 1.0, 2.0)
_NARROW = (10.0, 10.0, 5.0, 5.0)  # ATSS' deltas have deviations of 0.1 and 0.2


class RetinaNet(DenseDetector):
    """RetinaNet with nine anchors per cell, focal loss and generalised-IoU loss; equals torchvision's second version.

    Both terms are means over images of the sum over an image's anchors, divided by its number of positive anchors (at
    least 1).

    Lin et al., "Focal loss for dense object detection", ICCV 2017, arXiv 1708.02002.
    """

    overlap: ClassVar[float] = 0.5
    matching: ClassVar[Matching] = staticmethod(match_overlap)

    def __init__(self, spec: DetectorSpec, backbone: str) -> None:
        sizes = [spec.anchor_scale * octave for octave in _OCTAVES]
        super().__init__(
            spec,
            backbone,
            sizes,
            _RATIOS,
            HeadShape(classes=len(spec.categories), per_cell=len(sizes) * len(_RATIOS), hold=3),
        )

    def decode(self, raw: Tensor, anchors: Tensor, stride: int) -> Tensor:
        """See :meth:`DenseDetector.decode`: shifts and logarithmic sizes relative to the anchor."""
        return boxes_from_deltas(raw, anchors)

    def terms(
        self, outputs: DetectorOutputs, boxes: Tensor, anchors: Tensor, assigned: Assignment
    ) -> dict[str, Tensor]:
        """See :meth:`DenseDetector.terms`."""
        number = assigned.positive.sum(1).clamp(min=1)
        hot = targets_of_classes(assigned.labels, outputs.logits.shape[1])
        focal = sigmoid_focal_loss(outputs.logits, hot) * (assigned.labels != IGNORED)[:, None]
        places = assigned.places()
        found, truth = _at(boxes, places), _at(assigned.boxes, places)
        overlap = torch.zeros_like(boxes[..., 0]).flatten().index_copy(0, places, overlap_loss(found, truth))
        overlap = overlap.view(number.shape[0], -1)
        return {"class": (focal.sum((1, 2)) / number).mean(), "box": (overlap.sum(1) / number).mean()}


class FCOS(DenseDetector):
    """FCOS: points instead of anchors, with centre-ness on the box tower; equals torchvision's.

    Tian et al., "FCOS: fully convolutional one-stage object detection", ICCV 2019, arXiv 1904.01355.
    """

    matching: ClassVar[Matching] = staticmethod(match_points)
    anchored: ClassVar[bool] = False

    def __init__(self, spec: DetectorSpec, backbone: str) -> None:
        super().__init__(
            spec, backbone, [1.0], [1.0], HeadShape(classes=len(spec.categories), per_cell=1, hold=2, centerness=True)
        )

    def decode(self, raw: Tensor, anchors: Tensor, stride: int) -> Tensor:
        """See :meth:`DenseDetector.decode`: distances in strides, not below zero."""
        return around(centres(anchors), raw.relu() * stride)

    def terms(
        self, outputs: DetectorOutputs, boxes: Tensor, anchors: Tensor, assigned: Assignment
    ) -> dict[str, Tensor]:
        """See :meth:`DenseDetector.terms`; sums over the batch divided by its number of positive points (at least
        1).
        """
        places = assigned.places()
        number = max(len(places), 1)
        hot = targets_of_classes(assigned.labels, outputs.logits.shape[1])
        box = overlap_loss(_at(boxes, places), _at(assigned.boxes, places)).sum()
        centre, _ = _centreness_loss(outputs, anchors, assigned, places)
        focal = sigmoid_focal_loss(outputs.logits, hot, reduction="sum")
        return {"class": focal / number, "box": box / number, "centerness": centre / number}


class ATSS(DenseDetector):
    """ATSS: one square anchor per cell, positives by statistics of overlap, box loss weighted by centre-ness.

    The box term is divided by the sum of its weights, the others by the number of positive anchors of the batch (both
    at least 1).

    Zhang et al., "Bridging the gap between anchor-based and anchor-free detection via adaptive training sample
    selection", CVPR 2020, arXiv 1912.02424.
    """

    matching: ClassVar[Matching] = staticmethod(match_adaptively)

    def __init__(self, spec: DetectorSpec, backbone: str) -> None:
        shape = HeadShape(classes=len(spec.categories), per_cell=1, hold=3, centerness=True, scaled=True)
        super().__init__(spec, backbone, [2 * spec.anchor_scale], [1.0], shape)

    def decode(self, raw: Tensor, anchors: Tensor, stride: int) -> Tensor:
        """See :meth:`DenseDetector.decode`: shifts and logarithmic sizes relative to the anchor, of deviation 0.1 and
        0.2.
        """
        return boxes_from_deltas(raw, anchors, _NARROW)

    def terms(
        self, outputs: DetectorOutputs, boxes: Tensor, anchors: Tensor, assigned: Assignment
    ) -> dict[str, Tensor]:
        """See :meth:`DenseDetector.terms`."""
        places = assigned.places()
        number = max(len(places), 1)
        hot = targets_of_classes(assigned.labels, outputs.logits.shape[1])
        centre, weights = _centreness_loss(outputs, anchors, assigned, places)
        apart = overlap_loss(_at(boxes, places), _at(assigned.boxes, places))
        box = (weights * apart).sum() / weights.sum().clamp(min=1)
        focal = sigmoid_focal_loss(outputs.logits, hot, reduction="sum")
        return {"class": focal / number, "box": _BOX_WEIGHT * box, "centerness": centre / number}


class GFL(DenseDetector):
    """Generalized focal loss: class scores that tell the box's overlap, and a distribution over each side's distance;
    ATSS' assignment.

    Box and distribution terms are weighted by the anchor's highest class probability and divided by the sum of these
    weights, the class term by the number of positive anchors of the batch (both at least 1).

    Li et al., "Generalized focal loss: learning qualified and distributed bounding boxes for dense object detection",
    NeurIPS 2020, arXiv 2006.04388.
    """

    matching: ClassVar[Matching] = staticmethod(match_adaptively)

    def __init__(self, spec: DetectorSpec, backbone: str) -> None:
        shape = HeadShape(classes=len(spec.categories), per_cell=1, hold=3, bins=BINS, scaled=True)
        super().__init__(spec, backbone, [2 * spec.anchor_scale], [1.0], shape)

    def decode(self, raw: Tensor, anchors: Tensor, stride: int) -> Tensor:
        """See :meth:`DenseDetector.decode`: expected distances in strides."""
        return around(centres(anchors), expectation(raw) * stride)

    def terms(
        self, outputs: DetectorOutputs, boxes: Tensor, anchors: Tensor, assigned: Assignment
    ) -> dict[str, Tensor]:
        """See :meth:`DenseDetector.terms`."""
        assert outputs.distribution is not None
        places = assigned.places()
        found, truth = _at(boxes, places), _at(assigned.boxes, places)
        quality = targets_of_classes(assigned.labels, outputs.logits.shape[1])
        shape = assigned.labels.shape
        overlap = torch.zeros_like(boxes[..., 0]).flatten()
        overlap = overlap.index_copy(0, places, paired_overlap(found.detach(), truth)).view(shape)
        focal = quality_focal_loss(outputs.logits, quality * overlap[:, None]) / max(len(places), 1)
        weights = _at(outputs.logits.detach().sigmoid().amax(1), places)
        total = weights.sum().clamp(min=1)
        strides = _at(strides_of(outputs.levels, anchors.device).expand(shape), places)
        points = _at(centres(anchors).expand(*shape, 2), places)
        sides = (distances(points, truth) / strides[:, None]).clamp(0, BINS - 1 - _BELOW_LAST)
        spread = distribution_focal_loss(_at(outputs.distribution, places), sides).mean(-1)
        return {
            "class": focal,
            "box": _BOX_WEIGHT * (weights * overlap_loss(found, truth)).sum() / total,
            "distribution": _DISTRIBUTION_WEIGHT * (weights * spread).sum() / total,
        }


def _at(values: Tensor, places: Tensor) -> Tensor:
    """Some anchors' values ``(n, ...)`` of all ``(B, A, ...)``, see :meth:`Assignment.places`."""
    return values.flatten(0, 1)[places]


def around(points: Tensor, sides: Tensor) -> Tensor:
    """Boxes from points ``(a, 2)`` and distances ``(B, a, 4)`` to their sides."""
    return torch.cat((points - sides[..., :2], points + sides[..., 2:]), -1)


def _centreness_loss(
    outputs: DetectorOutputs, anchors: Tensor, assigned: Assignment, places: Tensor
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy summed over positive anchors, and the true centre-ness of each."""
    assert outputs.centerness is not None
    points = _at(centres(anchors).expand(*assigned.labels.shape, 2), places)
    truth = centreness(distances(points, _at(assigned.boxes, places)))
    found = _at(outputs.centerness, places)
    return F.binary_cross_entropy_with_logits(found, truth, reduction="sum"), truth
