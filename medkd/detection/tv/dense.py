"""What RetinaNet, FCOS, ATSS and GFL share: everything but assignment, decoding and loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from medkd.core.errors import RunError
from medkd.core.features import Tap
from medkd.detection.base import Detections, DetectionTarget, Detector, DetectorOutputs, DetectorSpec, Family
from medkd.detection.parts import whole_outputs
from medkd.detection.tv.assign import Assignment, Matching, assign
from medkd.detection.tv.backbones import CHANNELS, Pyramid, PyramidRule
from medkd.detection.tv.grid import AnchorGrid
from medkd.detection.tv.head import DenseHead, HeadShape, LevelPrediction
from medkd.training.ranks import Ranks

_CANDIDATES = 1000  # boxes per level that go into non-maximum suppression
SMALLEST = 1e-2
"""Narrower boxes, in pixels, are no detections."""


class DenseDetector(Detector):
    """A backbone with pyramid, and one head for levels ``p3`` … ``p7``.

    Args:
        spec: what to build.
        backbone: see :class:`~medkd.detection.tv.backbones.Pyramid`.
        sizes: sides of a cell's square anchors, in strides.
        ratios: height over width of the anchors of each size.
        shape: what the head predicts.

    Attributes:
        rule: how the pyramid differs from torchvision's.
        head_changes: fields of the shape that the detector has otherwise.
        exact: sides of anchors are not rounded to whole pixels.
    """

    family: ClassVar[Family] = "torchvision"
    overlap: ClassVar[float] = 0.6  # FCOS', ATSS' and GFL's
    matching: ClassVar[Matching]
    anchored: ClassVar[bool] = True
    rule: ClassVar[PyramidRule | None] = None
    head_changes: ClassVar[Mapping[str, Any]] = {}
    exact: ClassVar[bool] = False

    def __init__(
        self, spec: DetectorSpec, backbone: str, sizes: Sequence[float], ratios: Sequence[float], shape: HeadShape
    ) -> None:
        super().__init__()
        self.spec = spec
        self.pyramid = Pyramid(backbone, first=3, rule=self.rule)
        names, strides = self.pyramid.names, self.pyramid.strides
        sides = [[size * stride for size in sizes] for stride in strides]
        self.grid = AnchorGrid(names, strides, sides, ratios, centre=self.cell_centre, exact=self.exact)
        self._anchors: tuple[tuple[float, float], ...] = ()
        if self.anchored:
            self._anchors = tuple(product(map(float, sizes), map(float, ratios)))
        self.head = self.make_head(replace(shape, **self.head_changes))
        self.taps = (*self.pyramid.taps("pyramid"), *self._tower_taps(shape.hold))

    def make_head(self, shape: HeadShape) -> Any:
        """The head for levels ``p3`` … ``p7``."""
        return DenseHead(shape, self.pyramid.names)

    def _tower_taps(self, hold: int) -> list[Tap]:
        """The taps inside the towers, behind this block; none for 0."""
        if not hold:
            return []
        towers, tower = [], f"blocks.{hold - 1}"
        names, strides = self.pyramid.names, self.pyramid.strides
        for (name, stride), kind in product(zip(names, strides, strict=True), ("class", "box")):
            towers.append(
                Tap(
                    name=f"{name}.{kind}",
                    channels=CHANNELS,
                    stride=(stride, stride),
                    module=f"head.{kind}_tower.{tower}",
                    stage="head",
                )
            )
        return towers

    @property
    def anchors(self) -> tuple[tuple[float, float], ...]:
        """See :attr:`medkd.detection.base.Detector.anchors`."""
        return self._anchors

    def decode(self, raw: Tensor, anchors: Tensor, stride: int) -> Tensor:
        """Boxes ``(B, a, 4)`` in pixels from the head's raw values on one level, its anchors ``(a, 4)`` and its
        stride.
        """
        raise NotImplementedError

    def terms(
        self, outputs: DetectorOutputs, boxes: Tensor, anchors: Tensor, assigned: Assignment
    ) -> dict[str, Tensor]:
        """The weighted loss terms of outputs with their decoded boxes ``(B, A, 4)``."""
        raise NotImplementedError

    @property
    def scores_are_roots(self) -> bool:
        """See :attr:`medkd.detection.base.Detector.scores_are_roots`."""
        shape = getattr(self.head, "shape", None)
        return bool(shape and shape.centerness)

    def scores(self, outputs: DetectorOutputs) -> Tensor:
        """Score of every class at every anchor, ``(B, K, A)``; with a centre-ness the geometric mean of both."""
        scores = outputs.logits.sigmoid()
        return scores if outputs.centerness is None else (scores * outputs.centerness.sigmoid()[:, None]).sqrt()

    def forward(self, images: Tensor) -> DetectorOutputs:
        """One pass over images ``(B, 3, S, S)`` in [0, 1]."""
        return self.predict(self.pyramid(images))

    def predict(self, neck: Mapping[str, Tensor]) -> DetectorOutputs:
        """The head on neck maps ``p3`` … ``p7``."""
        levels = self.grid.levels(neck)
        found = [self.head(level.tap, neck[level.tap]) for level in levels]
        features = {name: neck[name] for name in self.grid.names}
        for level, one in zip(levels, found, strict=True):
            features |= {f"{level.tap}.{kind}": held for kind, held in one.held.items()}
        boxes = [self._decode(level.tap, neck[level.tap], one.box) for level, one in zip(levels, found, strict=True)]
        raw = torch.cat([one.box for one in found], 1)
        return DetectorOutputs(
            logits=torch.cat([one.logits for one in found], -1),
            features={name: feature.float() for name, feature in features.items()},
            boxes=torch.cat(boxes, 1),
            distribution=raw if self.head.shape.bins else None,
            centerness=_join_centerness(found),
            levels=levels,
        )

    def look(self, images: Tensor) -> DetectorOutputs:
        """See :meth:`medkd.detection.base.Detector.look`."""
        found: DetectorOutputs = self(images)
        return found

    def supervised(
        self,
        images: Tensor,
        seen: DetectorOutputs,
        boxes: Sequence[Tensor],
        classes: Sequence[Tensor],
        ranks: Ranks,
    ) -> tuple[dict[str, Tensor], DetectorOutputs, DetectionTarget]:
        """See :meth:`medkd.detection.base.Detector.supervised`."""
        outputs = whole_outputs(seen, ranks)
        terms, assigned = self._supervise(outputs, boxes, classes)
        return terms, outputs, DetectionTarget(assigned.labels[:, None], boxes=tuple(boxes), classes=tuple(classes))

    def losses_from_neck(
        self, images: Tensor, neck: dict[str, Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """See :meth:`medkd.detection.base.Detector.losses_from_neck`; levels that are missing in ``neck`` are its
        own.
        """
        own = {} if set(self.grid.names) <= set(neck) else self.pyramid(images)
        return self._supervise(self.predict({**own, **neck}), boxes, classes)[0]

    def observe(self, images: Tensor, student: DetectorOutputs) -> DetectorOutputs:
        """See :meth:`medkd.detection.base.Detector.observe`; a dense head needs nothing of the student's."""
        return self(images)

    def forward_from(self, tap: str, feature: Tensor) -> Tensor:
        """See :meth:`medkd.detection.base.Detector.forward_from`; from a neck's tap the class logits.

        Raises:
            RunError: there is no such tap.
        """
        level, _, kind = tap.partition(".")
        if level not in self.grid.names or kind not in ("", "class", "box"):
            raise RunError(f"{self.spec.name} has no tap '{tap}'; its taps are {', '.join(t.name for t in self.taps)}.")
        if not kind:
            return self.head(level, feature).logits
        if kind == "class":
            return self.head.logits_from(feature)
        raw = self.head.box_from(level, feature)
        return raw if self.head.shape.bins else self._decode(level, feature, raw)

    def candidates(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`medkd.detection.base.Detector.candidates`."""
        outputs = self(images)
        assert outputs.boxes is not None
        boxes = clip_boxes_to_image(outputs.boxes, (images.shape[-2], images.shape[-1]))
        scores = self.scores(outputs)
        best = []
        for level in outputs.levels:
            part = scores[:, :, level.start : level.stop].flatten(1)
            lowest = part.topk(min(_CANDIDATES, part.shape[1])).values[:, -1:]
            best.append((part * (part >= lowest)).unflatten(1, (-1, level.stop - level.start)))
        wide = (boxes[..., 2:] - boxes[..., :2]).amin(-1) >= SMALLEST
        return boxes, torch.cat(best, -1) * wide[:, None]

    @torch.no_grad()
    def detect(
        self, images: Tensor, score: float = 0.001, overlap: float | None = None, most: int = 300
    ) -> list[Detections]:
        """See :meth:`medkd.detection.base.Detector.detect`; of each level at most 1000 candidates are compared."""
        outputs = self(images)
        assert outputs.boxes is not None
        overlap = self.overlap if overlap is None else overlap
        scores = self.scores(outputs)
        boxes = clip_boxes_to_image(outputs.boxes, (images.shape[-2], images.shape[-1]))
        return [self._select(s, b, outputs, score, overlap, most) for s, b in zip(scores, boxes, strict=True)]

    def _select(
        self, scores: Tensor, boxes: Tensor, outputs: DetectorOutputs, score: float, overlap: float, most: int
    ) -> Detections:
        chosen = []
        for level in outputs.levels:
            part = scores[:, level.start : level.stop].flatten()
            best, places = part.topk(min(_CANDIDATES, part.numel()))
            places = places[best > score]
            size = level.stop - level.start
            chosen.append(torch.stack((places // size, places % size + level.start)))
        classes, anchors = torch.cat(chosen, 1)
        found, values = boxes[anchors], scores[classes, anchors]
        wide = (found[:, 2:] - found[:, :2]).amin(-1) >= SMALLEST
        found, values, classes = found[wide], values[wide], classes[wide]
        keep = batched_nms(found, values, classes, overlap)[:most]
        return Detections(found[keep], values[keep], classes[keep])

    def _decode(self, level: str, feature: Tensor, raw: Tensor) -> Tensor:
        return self.decode(raw, self.grid.on_level(level, feature.shape[-2:], feature.device), self.grid.strides[level])

    def _supervise(
        self, outputs: DetectorOutputs, boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], Assignment]:
        assert outputs.boxes is not None
        anchors = self.grid.anchors(outputs.levels, outputs.logits.device)
        with torch.autocast(anchors.device.type, enabled=False):
            assigned = assign(type(self).matching, anchors, outputs.levels, boxes, classes)
            return self.terms(outputs, outputs.boxes, anchors, assigned), assigned


def _join_centerness(found: Sequence[LevelPrediction]) -> Tensor | None:
    parts = [one.centerness for one in found if one.centerness is not None]
    return torch.cat(parts, 1) if parts else None


def targets_of_classes(labels: Tensor, classes: int) -> Tensor:
    """One-hot ``(B, K, A)`` of labels ``(B, A)``; zeros for background and anchors that are left out."""
    every = torch.arange(classes, device=labels.device)
    return (labels[:, None] == every[:, None]).float()
