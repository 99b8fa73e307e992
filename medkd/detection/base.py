"""The contract of a detector: what both families (ultralytics, torchvision) offer to training, distillation and
prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from medkd.core.errors import RunError
from medkd.core.features import Outputs, Tap, Target
from medkd.core.registry import Registry
from medkd.training.ranks import Ranks

Family = Literal["yolo", "torchvision"]


@dataclass(frozen=True)
class DetectorSpec:
    """What is needed to build a detector.

    Attributes:
        name: registry name, for example ``yolov8n`` or ``retinanet_r18``.
        categories: names of the classes, in order; ``K`` of them.
        image_size: side of the square input in pixels, a multiple of 32.
        anchor_scale: side of the smallest anchor in strides, for detectors with anchors.
        sides: longest long and short side in pixels of an image on the square; None lets the long side fill it.
    """

    name: str
    categories: tuple[str, ...]
    image_size: int
    anchor_scale: float = 4.0
    sides: tuple[int, int] | None = None


@dataclass(frozen=True)
class Level:
    """One level of the pyramid of a dense head.

    Attributes:
        tap: name of the neck's tap, ``p3`` for stride 8.
        stride: input pixels per cell.
        shape: cells ``(rows, columns)``.
        start: place of its first anchor among the ``A`` anchors of all levels.
        stop: place after its last anchor.
    """

    tap: str
    stride: int
    shape: tuple[int, int]
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class DetectorOutputs(Outputs):
    """One forward pass of a detector.

    ``features`` holds neck maps ``p2`` (stride 4) … ``p7`` (stride 128), ``(B, C, rows, columns)``, and of dense heads
    the places inside
    the towers that can be continued: ``p3.class`` and ``p3.box``, the output of a block before its activation.

    Attributes:
        logits: dense heads: class logits ``(B, K, A)``, to be read with a sigmoid, anchors level by level, row by row;
            two-stage
            detectors: ``(N, K + 1)`` of the ``N`` proposals of all images, softmax, background first.
        first_boxes: dense heads that refine their boxes: those before, ``(B, A, 4)``.
        boxes: decoded boxes ``(B, A, 4)``, left, top, right, bottom in input pixels, of dense heads and of the anchors
            from which two-stage detectors make their proposals.
        objectness: two-stage detectors: logits of these anchors, ``(B, 1, A)``.
        distribution: dense heads that learn a distribution over each side's distance: its logits ``(B, A, 4, bins)``.
        centerness: dense heads that have one: its logits ``(B, A)``.
        deltas: two-stage detectors: box deltas ``(N, K + 1, 4)``.
        proposals: two-stage detectors: per image the proposals that were scored, ``(n, 4)`` in input pixels.
        levels: of a dense head.
    """

    boxes: Tensor | None = None
    first_boxes: Tensor | None = None
    distribution: Tensor | None = None
    centerness: Tensor | None = None
    deltas: Tensor | None = None
    objectness: Tensor | None = None
    proposals: tuple[Tensor, ...] = ()
    levels: tuple[Level, ...] = ()


@dataclass(frozen=True)
class DetectionTarget(Target):
    """The ground truth of a batch, and what the student's own assignment made of it.

    Attributes:
        labels: dense heads: ``(B, 1, A)``, the class of an anchor's box, −1 for background, −2 for an anchor that is
            left out;
            two-stage: ``(N, 1)``, 0 for background, class + 1 else.
        valid: float weights over the anchors ``(B, 1, A)``: the teacher's highest class probability, zero where
            ``labels`` is −2; set by the distiller for dense heads, so that formulas with a mean over valid places
            become the mean that detectors need.
        boxes: per image ``(n, 4)``, left, top, right, bottom in input pixels.
        classes: per image ``(n,)``.
        objects: two-stage: 1 for an anchor that has a box, 0 for background, −1 for one that is left out,
            ``(B, 1, A)``.
    """

    boxes: tuple[Tensor, ...] = ()
    classes: tuple[Tensor, ...] = ()
    objects: Tensor | None = None


@dataclass(frozen=True)
class Detections:
    """What a detector finds in one image; sorted by score, highest first.

    Attributes:
        boxes: ``(n, 4)``, left, top, right, bottom in pixels.
        scores: ``(n,)``.
        classes: ``(n,)``, places in the spec's ``categories``.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


class Detector(nn.Module):
    """A detector of either family.

    Images are ``(B, 3, S, S)`` float in [0, 1], letterboxed to the square; a detector normalises them itself, so that
    teacher and student of different families can see the same batch.

    Attributes:
        spec: how it was built.
        taps: the neck's taps (stage ``neck``, finest first), then for dense heads the towers' (stage ``head``).
        family: which family it belongs to.
        two_stage: whether it scores proposals (``logits`` with background, softmax) instead of anchors (sigmoid).
        overlap: the published intersection over union of its non-maximum suppression.
        cell_centre: where in a cell its anchors or points have their centre, as a share of the stride.
    """

    spec: DetectorSpec
    taps: tuple[Tap, ...]
    family: ClassVar[Family]
    two_stage: ClassVar[bool] = False
    overlap: ClassVar[float] = 0.7
    cell_centre: ClassVar[float] = 0.0

    @property
    def end_to_end(self) -> bool:
        """Whether it detects with another head than the one whose outputs it gives to distillation."""
        return False

    @property
    def scores_are_roots(self) -> bool:
        """Whether a score is the root of a product, of a class's with a centre-ness."""
        return False

    @property
    def anchors(self) -> tuple[tuple[float, float], ...]:
        """Side in strides and height over width of each anchor of a cell; empty where it has none (points, or cells
        themselves).
        """
        return ()

    def losses(
        self, images: Tensor, boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], DetectorOutputs, DetectionTarget]:
        """The detector's own weighted loss terms (scalars, means over the batch), its outputs, and the targets as it
        assigned them.
        """
        return self.supervised(images, self.look(images), boxes, classes, Ranks())

    def look(self, images: Tensor) -> Any:
        """The forward pass of :meth:`losses`, with all that is random in the network."""
        raise NotImplementedError

    def supervised(
        self, images: Tensor, seen: Any, boxes: Sequence[Tensor], classes: Sequence[Tensor], ranks: Ranks
    ) -> tuple[dict[str, Tensor], DetectorOutputs, DetectionTarget]:
        """The rest of :meth:`losses`, also where every process has a part of the batch.

        Args:
            images: this process' part.
            seen: what :meth:`look` gave for them.
            boxes: of all images of the batch.
            classes: of all images of the batch.
            ranks: the processes.

        Returns:
            Terms, outputs and targets of the whole batch; of the outputs ``features`` are those of this process'
            images.
        """
        raise NotImplementedError

    @classmethod
    def can_be_shared(cls) -> bool:
        """Whether several processes can train one, see :meth:`supervised`."""
        return cls.supervised is not Detector.supervised and cls.losses is Detector.losses

    def observe(self, images: Tensor, student: DetectorOutputs) -> DetectorOutputs:
        """The outputs on a batch as a teacher: without losses; a two-stage detector scores the student's proposals."""
        raise NotImplementedError

    def forward_from(self, tap: str, feature: Tensor) -> Tensor:
        """The rest of the head from a tower's tap on (``p3.class``, ``p3.box``), or the whole head from a neck's tap.

        Returns:
            From ``p3.class``: logits ``(B, K, anchors of the level)``; from ``p3.box``: the distribution's logits
            ``(B, anchors, 4, bins)``, or boxes ``(B, anchors, 4)`` where there is none.
        """
        raise NotImplementedError

    def losses_from_neck(
        self, images: Tensor, neck: dict[str, Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The loss terms with other neck maps in place of its own (for methods that learn masks on a teacher)."""
        raise NotImplementedError

    def candidates(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`detect` chooses from, for exporters: boxes ``(B, A, 4)`` in input pixels, as they are compared,
        and scores ``(B, K, A)`` in [0, 1], 0 for what it would not compare. Two-stage detectors take one image.
        """
        raise NotImplementedError

    def detect(
        self, images: Tensor, score: float = 0.001, overlap: float | None = None, most: int = 300
    ) -> list[Detections]:
        """Boxes per image in input pixels, after non-maximum suppression.

        Args:
            images: ``(B, 3, S, S)``.
            score: lowest score that is kept.
            overlap: intersection over union above which the weaker of two boxes of a class is dropped; None is
                :attr:`overlap`. An end-to-end head drops none.
            most: most boxes per image.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class DetectorEntry:
    """A detector that can be built by name.

    Attributes:
        family: who trains it.
        build: makes it with random weights, from nothing but a spec; must not touch a network.
        about: one line for ``medkd_list``.
    """

    family: Family
    build: Callable[[DetectorSpec], Detector]
    about: str


DETECTORS: Registry[DetectorEntry] = Registry("detector", RunError, "medkd.detectors")
