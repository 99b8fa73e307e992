"""The YOLO detectors: ultralytics' networks behind medkd's contract. Importing this does not import ultralytics;
building one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log2
from typing import Any, ClassVar

import torch
import torchvision
from torch import Tensor

from medkd.core.errors import RunError
from medkd.core.features import Tap
from medkd.detection.base import (
    DETECTORS,
    Detections,
    DetectionTarget,
    Detector,
    DetectorEntry,
    DetectorOutputs,
    DetectorSpec,
    Family,
)
from medkd.detection.yolo.architectures import OTHER, STANDARD, TimmFeatures, description
from medkd.detection.yolo.assignment import Seen, from_batch, loss_terms, to_batch, whole_seen
from medkd.detection.yolo.head import decode, finish, held_module, hold, levels_of, run_head, split_sides
from medkd.training.ranks import Ranks

MOST_CANDIDATES = 30000
"""Boxes per image that are looked at in non-maximum suppression, the best ones."""


class YoloDetector(Detector):
    """An ultralytics ``DetectionModel`` behind medkd's contract.

    Its state dict is that of the network. Of an end-to-end head, losses are those of both heads, outputs and taps those
    of the one-to-many head (the other one is cut off from the neck in training), and :meth:`detect` uses the one-to-one
    head without suppression.

    Args:
        spec: how it was built.
        network: ``ultralytics.nn.tasks.DetectionModel``, not fused, for the spec's categories.

    Attributes:
        model: the network's layers, the only registered module.
        network: the network itself, not registered a second time.
        bins: of each side's distribution; 1 where there is none.
    """

    family: ClassVar[Family] = "yolo"
    overlap: ClassVar[float] = 0.7  # ultralytics' ``iou``
    cell_centre: ClassVar[float] = 0.5
    network: Any

    def __init__(self, spec: DetectorSpec, network: Any) -> None:
        super().__init__()
        self.spec = spec
        self.model = network.model
        self.__dict__["network"] = network
        network.names = dict(enumerate(spec.categories))
        self.bins: int = self.head.reg_max
        self._strides = [int(s) for s in network.stride]
        self._names = [f"p{int(log2(s))}" for s in self._strides]
        self._criterion: Any = None
        self.taps = self._make_taps()

    @property
    def head(self) -> Any:
        """``ultralytics.nn.modules.Detect``."""
        return self.model[-1]  # type: ignore[index]  # a Sequential

    def _make_taps(self) -> tuple[Tap, ...]:
        head: Any = self.head
        neck, towers = [], []
        for level, (name, stride) in enumerate(zip(self._names, self._strides, strict=True)):
            neck.append(
                Tap(
                    name=name,
                    channels=head.cv2[level][0].conv.in_channels,
                    stride=(stride, stride),
                    module=f"model.{head.f[level]}",
                    stage="neck",
                )
            )
            for kind, path, branch in (("class", "cv3", head.cv3[level]), ("box", "cv2", head.cv2[level])):
                module = f"model.{head.i}.{path}.{level}.{held_module(branch)}"
                norm: Any = self.get_submodule(module)
                towers.append(
                    Tap(
                        name=f"{name}.{kind}",
                        channels=norm.num_features,
                        stride=(stride, stride),
                        module=module,
                        stage="head",
                    )
                )
        return (*neck, *towers)

    def neck(self, images: Tensor) -> list[Tensor]:
        """The head's input maps, finest first."""
        kept: list[Tensor | None] = []
        x: Any = images
        for layer in list(self.model)[:-1]:  # type: ignore[call-overload]  # a Sequential
            if layer.f != -1:
                x = kept[layer.f] if isinstance(layer.f, int) else [x if j == -1 else kept[j] for j in layer.f]
            x = layer(x)
            kept.append(x if layer.i in self.network.save else None)
        return [kept[j] for j in self.head.f]  # type: ignore[misc]  # the head's inputs are always kept

    def _run(self, feats: list[Tensor], losses: bool) -> Seen:
        """Raw outputs in ultralytics' training form, and the features."""
        raw, held = run_head(self.head, feats, self._names, second=losses and self.end_to_end)
        return raw, {**dict(zip(self._names, feats, strict=True)), **held}

    def _outputs(self, seen: Seen) -> DetectorOutputs:
        """What raw outputs mean; they may be of more images than the features."""
        raw, features = seen
        many = raw.get("one2many", raw)
        levels = levels_of(self._names, self._strides, many["feats"])
        sides = split_sides(many["boxes"], self.bins)
        return DetectorOutputs(
            logits=many["scores"],
            features=features,
            boxes=decode(sides, levels),
            distribution=sides if self.bins > 1 else None,
            levels=levels,
        )

    @property
    def end_to_end(self) -> bool:
        """See :attr:`medkd.detection.base.Detector.end_to_end`."""
        return getattr(self.head, "one2one_cv2", None) is not None

    def look(self, images: Tensor) -> Seen:
        """See :meth:`medkd.detection.base.Detector.look`: raw outputs, and features."""
        return self._run(self.neck(images), losses=True)

    def supervised(
        self, images: Tensor, seen: Seen, boxes: Sequence[Tensor], classes: Sequence[Tensor], ranks: Ranks
    ) -> tuple[dict[str, Tensor], DetectorOutputs, DetectionTarget]:
        """See :meth:`medkd.detection.base.Detector.supervised`; the terms are ultralytics', named as it names them."""
        batch = to_batch(images[:1].expand(len(boxes), -1, -1, -1), boxes, classes)  # whose pixels nobody looks at
        return self.terms_of(self._own_criterion(), whole_seen(seen, ranks), batch)

    def terms_of(
        self, criterion: Any, seen: Seen, batch: dict[str, Any]
    ) -> tuple[dict[str, Tensor], DetectorOutputs, DetectionTarget]:
        """:meth:`losses` for the criterion of ultralytics' trainer.

        Args:
            criterion: of the trainer.
            seen: what :meth:`look` gave, of the whole batch.
            batch: of ultralytics' loader.
        """
        terms, labels = loss_terms(criterion, seen[0], batch)
        boxes, classes = from_batch(batch)
        return terms, self._outputs(seen), DetectionTarget(labels, boxes=boxes, classes=classes)

    def losses_from_neck(
        self, images: Tensor, neck: dict[str, Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """See :meth:`medkd.detection.base.Detector.losses_from_neck`."""
        missing = any(name not in neck for name in self._names)
        own = dict(zip(self._names, self.neck(images), strict=True)) if missing else {}
        raw, _ = self._run([neck[n] if n in neck else own[n] for n in self._names], losses=True)
        return loss_terms(self._own_criterion(), raw, to_batch(images, boxes, classes))[0]

    def observe(self, images: Tensor, student: DetectorOutputs) -> DetectorOutputs:
        """See :meth:`medkd.detection.base.Detector.observe`."""
        return self._outputs(self._run(self.neck(images), losses=False))

    def forward_from(self, tap: str, feature: Tensor) -> Tensor:
        """See :meth:`medkd.detection.base.Detector.forward_from`; from a neck's tap the class logits of its level ``(B,
        K, anchors)``.
        """
        name, _, kind = tap.partition(".")
        if name not in self._names or kind not in ("", "class", "box"):
            raise RunError(
                f"{self.spec.name} cannot be continued from '{tap}'; it has the taps "
                f"{', '.join(t.name for t in self.taps)}."
            )
        level = self._names.index(name)
        if kind == "box":
            sides = split_sides(finish(self.head.cv2[level], feature).flatten(2), self.bins)
            return sides if self.bins > 1 else decode(sides, levels_of([name], [self._strides[level]], [feature]))
        branch = self.head.cv3[level]
        return finish(branch, feature if kind else hold(branch, feature)).flatten(2)

    def candidates(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`medkd.detection.base.Detector.candidates`."""
        feats = self.neck(images)
        raw = self.head.forward_head(feats, **(self.head.one2one if self.end_to_end else self.head.one2many))
        levels = levels_of(self._names, self._strides, feats)
        boxes = decode(split_sides(raw["boxes"], self.bins), levels)
        return boxes, raw["scores"].float().sigmoid()

    @torch.no_grad()
    def detect(
        self, images: Tensor, score: float = 0.001, overlap: float | None = None, most: int = 300
    ) -> list[Detections]:
        """See :meth:`medkd.detection.base.Detector.detect`; every class of an anchor is a candidate of its own."""
        training = self.training
        self.eval()
        try:
            boxes, scores = self.candidates(images)
        finally:
            self.train(training)
        limit = boxes.new_tensor([images.shape[-1], images.shape[-2]] * 2)
        suppression = None if self.end_to_end else self.overlap if overlap is None else overlap
        chosen = [_select(b, p, score, suppression, most) for b, p in zip(boxes, scores, strict=True)]
        return [replace(found, boxes=found.boxes.clamp(min=0).minimum(limit)) for found in chosen]

    def _own_criterion(self) -> Any:
        """The network's loss with ultralytics' default weights, or those that its trainer left in it."""
        if self._criterion is None:
            if not hasattr(self.network, "args"):
                from medkd.detection.yolo.library import get_cfg

                self.network.args = get_cfg()
            self._criterion = self.network.init_criterion()
        return self._criterion

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> YoloDetector:
        """Convert or move it; the network takes its strides and anchors along, which are no buffers."""
        self.network._apply(fn)
        self._criterion = None  # it holds tensors on the former device
        return self


def _select(boxes: Tensor, probabilities: Tensor, score: float, overlap: float | None, most: int) -> Detections:
    """The best boxes of one image: ``boxes`` ``(A, 4)``, ``probabilities`` ``(K, A)``; ``overlap`` None: no
    suppression.
    """
    classes, anchors = (probabilities > score).nonzero(as_tuple=True)
    scores, order = probabilities[classes, anchors].sort(descending=True, stable=True)
    scores, order = scores[:MOST_CANDIDATES], order[:MOST_CANDIDATES]
    classes, boxes = classes[order], boxes[anchors[order]]
    if overlap is None:
        keep = torch.arange(min(most, len(scores)), device=scores.device)
    else:
        keep = torchvision.ops.batched_nms(boxes, scores, classes, overlap)[:most]
    return Detections(boxes[keep], scores[keep], classes[keep])


def build(spec: DetectorSpec) -> YoloDetector:
    """Build a YOLO detector by name with random weights.

    Raises:
        RunError: ultralytics is not installed.
    """
    from medkd.detection.yolo.library import DetectionModel, tasks, unchanged_process

    vars(tasks)[TimmFeatures.__name__] = TimmFeatures  # where its parser looks names up
    layout = description(spec.name)
    with unchanged_process():
        layout = tasks.yaml_model_load(layout) if isinstance(layout, str) else layout
        network = DetectionModel({**layout, "nc": len(spec.categories)}, ch=3, verbose=False)
    return YoloDetector(spec, network)


for _name, _about in {**STANDARD, **{name: entry[0] for name, entry in OTHER.items()}}.items():
    DETECTORS.register(_name)(DetectorEntry("yolo", build, _about))
