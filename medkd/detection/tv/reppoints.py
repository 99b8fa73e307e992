"""RepPoints: a dense detector whose objects are sets of points, placed twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from medkd.core.errors import RunError
from medkd.detection.base import DetectorOutputs, DetectorSpec, Level
from medkd.detection.tv.assign import IGNORED, Assignment, Matching, assign, match_found, match_nearest
from medkd.detection.tv.backbones import PyramidRule
from medkd.detection.tv.dense import DenseDetector, targets_of_classes
from medkd.detection.tv.grid import centres, strides_of
from medkd.detection.tv.head import HeadShape
from medkd.detection.tv.points import PointsHead, Transform

SCALE = 4
"""Side of the box, in strides, in whose units the box losses are counted."""
_BETA = 0.11  # below it the smooth L1 loss is quadratic
_FIRST_WEIGHT, _REFINED_WEIGHT = 0.5, 1.0


class RepPoints(DenseDetector):
    """RepPoints with group normalisation in neck and head, as its published results with two schedules.

    The points that are placed first learn, for every box, from the nearest cell of the level of its size; their boxes
    are then matched by overlap as RetinaNet's anchors are, and the refined points and the classes learn from that::

        L = Σ focal / N₂ + ½ Σ smooth L1(b₁, b*) / N₁ + Σ smooth L1(b₂, b*) / N₂

    with boxes in units of four strides, and ``N`` the positive cells of the batch (at least one per image).

    Yang, Liu, Hu, Wang, Lin: "RepPoints: point set representation for object detection", ICCV 2019, arXiv 1904.11490.

    Args:
        spec: what to build.
        backbone: see :class:`~medkd.detection.tv.backbones.Pyramid`.
        transform: how points become a box.
    """

    overlap: ClassVar[float] = 0.5
    matching: ClassVar[Matching] = staticmethod(match_found)
    anchored: ClassVar[bool] = False
    rule: ClassVar[PyramidRule | None] = PyramidRule(from_backbone=True, relu=False, norm=True)
    head: PointsHead

    def __init__(self, spec: DetectorSpec, backbone: str, transform: Transform = "moment") -> None:
        self._transform: Transform = transform
        shape = HeadShape(classes=len(spec.categories), per_cell=1, hold=0)
        super().__init__(spec, backbone, [1.0], [1.0], shape)

    def make_head(self, shape: HeadShape) -> PointsHead:
        """See :meth:`DenseDetector.make_head`; its towers have no taps, since one alone cannot be continued."""
        return PointsHead(shape.classes, self._transform)

    def predict(self, neck: Mapping[str, Tensor]) -> DetectorOutputs:
        """See :meth:`DenseDetector.predict`."""
        levels = self.grid.levels(neck)
        logits, first, refined = [], [], []
        for level in levels:
            found = self.head(neck[level.tap])
            logits.append(found.logits)
            first.append(self._place(found.first, level, neck[level.tap]))
            refined.append(self._place(found.refined, level, neck[level.tap]))
        return DetectorOutputs(
            logits=torch.cat(logits, -1),
            features={name: neck[name].float() for name in self.grid.names},
            boxes=torch.cat(refined, 1),
            first_boxes=torch.cat(first, 1),
            levels=levels,
        )

    def forward_from(self, tap: str, feature: Tensor) -> Tensor:
        """See :meth:`DenseDetector.forward_from`; there are the neck's taps alone.

        Raises:
            RunError: there is no such tap.
        """
        if tap not in self.grid.names:
            raise RunError(f"{self.spec.name} has no tap '{tap}'; its taps are {', '.join(t.name for t in self.taps)}.")
        return self.head(feature).logits

    def _place(self, points: Tensor, level: Level, feature: Tensor) -> Tensor:
        """Boxes ``(B, a, 4)`` in pixels of the point sets of a level's cells."""
        cells = centres(self.grid.on_level(level.tap, level.shape, feature.device))
        return cells.repeat(1, 2) + level.stride * self.head.boxes(points)

    def _supervise(
        self, outputs: DetectorOutputs, boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], Assignment]:
        assert outputs.boxes is not None and outputs.first_boxes is not None
        levels = outputs.levels
        cells = self.grid.anchors(levels, outputs.logits.device)
        with torch.autocast(cells.device.type, enabled=False):
            nearest = assign(match_nearest, cells, levels, boxes, classes)
            found = assign(type(self).matching, outputs.first_boxes.detach(), levels, boxes, classes)
            hot = targets_of_classes(found.labels, outputs.logits.shape[1])
            focal = sigmoid_focal_loss(outputs.logits, hot) * (found.labels != IGNORED)[:, None]
            terms = {
                "class": focal.sum() / _number(found),
                "first_box": _FIRST_WEIGHT * _apart(outputs.first_boxes, nearest, levels),
                "box": _REFINED_WEIGHT * _apart(outputs.boxes, found, levels),
            }
        return terms, found


def _number(assigned: Assignment) -> Tensor:
    """Positive cells of the batch, at least one per image."""
    return assigned.positive.sum(1).clamp(min=1).sum()


def _apart(boxes: Tensor, assigned: Assignment, levels: Sequence[Level]) -> Tensor:
    """Smooth L1 distance of the positive cells' boxes ``(B, A, 4)`` from theirs, in units of four strides."""
    places = assigned.places()
    units = SCALE * strides_of(levels, boxes.device).expand(len(boxes), -1).flatten()[places][:, None]
    found, truth = boxes.flatten(0, 1)[places], assigned.boxes.flatten(0, 1)[places]
    return F.smooth_l1_loss(found / units, truth / units, reduction="sum", beta=_BETA) / _number(assigned)
