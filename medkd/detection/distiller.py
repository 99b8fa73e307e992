"""Joins a frozen detector and a method, and gives a detector's training the extra loss terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from medkd.core.checkpoint import weights_digest
from medkd.core.errors import MethodError
from medkd.detection.base import DetectionTarget, Detector, DetectorOutputs, Level
from medkd.detection.parts import whole_features, whole_outputs, whole_scores
from medkd.distillation import Method
from medkd.distillation.prompts.first_stage import PromptMethod
from medkd.training.ranks import Ranks

SURE = 0.25
"""Lowest score of a teacher's box that stands for a missing annotation; ultralytics' default for shown boxes."""

_MOST_FOUND = 100  # such boxes per image


@runtime_checkable
class ReadsTeacher(Protocol):
    """A method that looks at the teacher once, before training."""

    def read(self, teacher: Detector) -> None:
        """Take from the teacher what its outputs do not tell."""


class DetectorDistiller:
    """A frozen teacher and a method.

    The training loop does, per step::

        losses, outputs, target = student.losses(images, boxes, classes)
        terms = distiller.terms(images, outputs, target)

    The teacher is in eval mode and without gradient, and is not a submodule of anything, so that it never reaches an
    optimiser, an average of weights, a checkpoint or an exported student. It sees the student's exact images, under
    whatever autocast the caller is in; the method itself runs in float32 with autocast off.

    Dense heads are compared on the levels that both have (equal stride and anchors): outputs and labels of the others
    are left out of what the method sees. ``target.valid`` is the teacher's highest class probability per anchor, zero
    for anchors that the student's assignment leaves out; for two-stage detectors it is 1 for every proposal.

    Where several processes have a part of every batch each (:attr:`ranks`), the teacher sees this process' images, and
    the method the outputs on all of them.

    Args:
        teacher: the detector to learn from; None where the method needs no teacher.
        method: the distillation method, whose helpers are trained with the student.
        anchors: the student's, see :attr:`medkd.detection.base.Detector.anchors`; empty for a student without.

    Raises:
        MethodError: there is no teacher where one is needed, it knows another number of classes, it scores proposals
            and the student anchors (or the reverse) or other anchors than the student's although the method compares
            scores, or it cannot be continued although the method needs that.
    """

    def __init__(self, teacher: Detector | None, method: Method, anchors: Sequence[tuple[float, float]] = ()) -> None:
        if method.needs_teacher and teacher is None:
            raise MethodError(f"{type(method).__name__} needs a teacher, but none was given.")
        self.method = method
        self.ranks = Ranks()
        self.teacher: Detector | None = None
        if teacher is not None and method.needs_teacher:
            _check(teacher, method, anchors)
            for part in _parts(method):
                if isinstance(part, ReadsTeacher):
                    part.read(teacher)
            self.teacher = teacher.eval().requires_grad_(False)
        self._scores = any(_compares_scores(part) for part in _parts(method))

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher runs at all."""
        return self.teacher is not None

    def digests(self) -> tuple[str, ...]:
        """A hash of the teacher's weights, where it runs."""
        return () if self.teacher is None else (weights_digest(self.teacher.state_dict()),)

    @property
    def needs_preparation(self) -> bool:
        """Whether :meth:`prepare` must run before the first step; false once a prepared state was loaded."""
        return self.method.needs_preparation

    def terms(self, images: Tensor, student: DetectorOutputs, target: DetectionTarget) -> dict[str, Tensor]:
        """The named, weighted distillation terms of one batch; empty for a method without any.

        Args:
            images: the student's input ``(B, 3, S, S)``.
            student: its outputs on them.
            target: boxes, the student's own assignment, and progress.

        Raises:
            MethodError: the method compares scores, and student and teacher score different places.
        """
        student, teacher, target = self.compared(images, student, target)
        with torch.autocast(images.device.type, enabled=False):
            return self.method(student, teacher, target)

    def compared(
        self,
        images: Tensor,
        student: DetectorOutputs,
        target: DetectionTarget,
        *,
        vary: Callable[[DetectorOutputs], DetectorOutputs] | None = None,
    ) -> tuple[DetectorOutputs, DetectorOutputs, DetectionTarget]:
        """What the method gets of one batch: the outputs of student and teacher in float32, and the target, on the same
        anchors or proposals.

        Args:
            images: as for :meth:`terms`, like the others.
            student: its outputs.
            target: its targets.
            vary: changes the outputs of both before they are compared.
        """
        needs = self.method.needs()
        student = whole_features(_float32(student), needs.student, self.ranks)
        teacher = whole_features(_float32(self._observe(images, student)), needs.teacher, self.ranks)
        teacher = replace(teacher, forward_from=self._forward_from(images.device.type))
        if vary is not None:
            student, teacher = vary(student), vary(teacher)
        return self._comparable(student, teacher, target)

    def _observe(self, images: Tensor, student: DetectorOutputs) -> DetectorOutputs:
        if self.teacher is None:
            return DetectorOutputs(logits=student.logits.detach())
        self.teacher.eval()
        ranks = self.ranks
        if not self.teacher.two_stage:
            with torch.no_grad():
                return whole_outputs(self.teacher.observe(images.detach(), student), ranks)
        # a dense student has no proposals: only features are compared
        proposals = student.proposals or _whole(images) * ranks.count
        own = ranks.part(len(proposals))
        with torch.no_grad():
            found = self.teacher.observe(images.detach(), replace(student, proposals=proposals[own.start : own.stop]))
        return whole_scores(found, proposals, ranks)

    def _forward_from(self, device: str) -> Callable[[str, Tensor], Tensor] | None:
        """The teacher's continuation from a tap, under the caller's autocast; gradient flows to the feature, not to the
        teacher.
        """
        if self.teacher is None or not self.method.continues_teacher:
            return None
        rest = self.teacher.forward_from
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

        def run(tap: str, feature: Tensor) -> Tensor:
            with torch.autocast(device, dtype=dtype, enabled=enabled):
                return rest(tap, feature).float()

        return run

    def _comparable(
        self, student: DetectorOutputs, teacher: DetectorOutputs, target: DetectionTarget
    ) -> tuple[DetectorOutputs, DetectorOutputs, DetectionTarget]:
        """Both outputs and the target on the same anchors or proposals, with the weight of each."""
        shared = _shared_levels(student, teacher)
        if shared is not None:
            ours, theirs = shared
            target = replace(target, labels=_pick(target.labels, ours, student.levels, 2))
            student, teacher = _cut(student, ours), _cut(teacher, theirs)
        if student.logits.shape != teacher.logits.shape:
            if self._scores and self.teacher is not None:
                raise MethodError(
                    f"Teacher and student must score the same places, found {_places(teacher)} and {_places(student)}; "
                    "choose a method "
                    "that compares features, or detectors with the same kind of head."
                )
            return student, teacher, target
        if teacher.logits.ndim == 3:
            sure = torch.sigmoid(teacher.logits).amax(1, keepdim=True)
            return student, teacher, replace(target, valid=sure.masked_fill(target.labels == -2, 0.0))
        return student, teacher, replace(target, valid=torch.ones_like(teacher.logits[:, :1]))

    def annotate(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Boxes and classes per image that stand for missing annotations, for methods that look where objects are:
        what the teacher finds with a score of at least :data:`SURE`.

        Args:
            images: ``(B, 3, S, S)``.
        """
        if self.teacher is None:
            nothing = images.new_zeros((0, 4)), images.new_zeros(0, dtype=torch.int64)
            return (nothing[0],) * len(images), (nothing[1],) * len(images)
        self.teacher.eval()
        with torch.no_grad():
            found = self.teacher.detect(images, score=SURE, most=_MOST_FOUND)
        return tuple(one.boxes.float() for one in found), tuple(one.classes.long() for one in found)

    def prepare(self, batches: Iterable[tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]]) -> None:
        """Run the method's first stage, where it has one that has not run: see
        :meth:`medkd.distillation.Method.prepare`.

        Args:
            batches: training batches ``(images, boxes, classes)`` as :meth:`medkd.detection.base.Detector.losses` takes
                them; as many as the method wants are drawn.
        """
        if self.teacher is not None and self.needs_preparation:
            self.method.prepare(DetectionTeacher(self.teacher), batches)

    def parameters(self) -> list[nn.Parameter]:
        """The method's trainable helpers, for the optimiser; the teacher's are never among them."""
        return [p for p in self.method.parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Tensor]:
        """State of the method's helpers, for training checkpoints; nothing of the teacher."""
        return self.method.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the helpers exactly."""
        self.method.load_state_dict(state)

    def to(self, device: torch.device | str) -> DetectorDistiller:
        """Move teacher and helpers to a device, in place."""
        self.method.to(device)
        if self.teacher is not None:
            self.teacher.to(device)
        return self


class DetectionTeacher:
    """A detector whose loss can be asked for with other neck maps
    (:class:`medkd.distillation.prompts.first_stage.PromptTeacher`).

    Args:
        detector: frozen; batches are ``(images, boxes, classes)``, on any device.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    def features(self, batch: Any, names: Sequence[str]) -> dict[str, Tensor]:
        """Neck maps without gradient, in float32."""
        images, _, _ = self._moved(batch)
        self._detector.eval()
        with torch.no_grad():
            seen = self._detector.observe(
                images, DetectorOutputs(logits=images.new_zeros(len(images), 1), proposals=_whole(images))
            )
        return {name: seen.features[name].float() for name in names}

    def task_loss(self, batch: Any, replaced: Mapping[str, Tensor]) -> Tensor:
        """The sum of the detector's loss terms."""
        images, boxes, classes = self._moved(batch)
        terms = self._detector.losses_from_neck(images, dict(replaced), boxes, classes)
        return torch.stack([term.float() for term in terms.values()]).sum()

    def _moved(self, batch: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        device = next(self._detector.parameters()).device
        images, boxes, classes = batch
        return images.to(device), [b.to(device) for b in boxes], [c.to(device) for c in classes]


def _whole(images: Tensor) -> tuple[Tensor, ...]:
    """The whole of every image as its only proposal, for two-stage teachers whose scores nobody looks at."""
    return (images.new_tensor([[0.0, 0.0, images.shape[3], images.shape[2]]], dtype=torch.float32),) * len(images)


def _parts(method: Method) -> list[Method]:
    """The method, or the methods that are joined in it."""
    joined = getattr(method, "parts", None)
    return [m for m in joined.values() if isinstance(m, Method)] if isinstance(joined, nn.ModuleDict) else [method]


def _compares_scores(method: Method) -> bool:
    return method.needs_teacher and (method.outputs_only or getattr(method, "dense_heads", False))


def _check(teacher: Detector, method: Method, anchors: Sequence[tuple[float, float]]) -> None:
    """Refuse a teacher that cannot teach a student of this context by this method."""
    about = method.context
    classes, known = about.num_outputs - (0 if about.regions else 1), len(teacher.spec.categories)
    if classes != known:
        raise MethodError(
            f"The teacher knows {known} classes and the student {classes}; both must be trained for the same classes."
        )
    for part in _parts(method):
        if _compares_scores(part):
            _check_scores(teacher, part, anchors)
        wanted = "losses_from_neck" if isinstance(part, PromptMethod) else "forward_from"
        if part.continues_teacher and getattr(type(teacher), wanted) is getattr(Detector, wanted):
            raise MethodError(
                f"{type(part).__name__} sends features through the rest of the teacher, which "
                f"{type(teacher).__name__} does not offer."
            )


def _check_scores(teacher: Detector, part: Method, anchors: Sequence[tuple[float, float]]) -> None:
    """Refuse a teacher that scores other places than the student."""
    name, dense, kinds = type(part).__name__, part.context.regions, ("scores anchors", "scores proposals")
    if dense == teacher.two_stage:
        raise MethodError(
            f"{name} compares class scores, but the teacher {kinds[teacher.two_stage]} and the student "
            f"{kinds[not dense]}; choose a method that compares features."
        )
    if not teacher.two_stage and _differ(teacher.anchors, anchors):
        raise MethodError(
            f"{name} compares class scores anchor by anchor, but the teacher's anchors ({_shapes(teacher.anchors)}) "
            f"are not the student's ({_shapes(anchors)}); train both with one anchor_scale, or choose a method that "
            "compares features."
        )


def _differ(theirs: Sequence[tuple[float, float]], ours: Sequence[tuple[float, float]]) -> bool:
    """Whether both have anchors, and others; a detector without them scores the same cells."""
    return bool(theirs and ours) and (len(theirs) != len(ours) or not np.allclose(theirs, ours))


def _shapes(anchors: Sequence[tuple[float, float]]) -> str:
    """``sides of 4, 5.04 strides, heights of 0.5, 1 widths``."""
    sides, ratios = (", ".join(f"{value:.3g}" for value in dict.fromkeys(part)) for part in zip(*anchors, strict=True))
    return f"sides of {sides} strides, heights of {ratios} widths"


def _float32(outputs: DetectorOutputs) -> DetectorOutputs:
    """The same outputs, every floating tensor in float32."""
    return replace(
        outputs, **{f.name: _cast(getattr(outputs, f.name)) for f in fields(outputs) if f.name != "forward_from"}
    )


def _cast(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: _cast(item) for name, item in value.items()}
    return tuple(_cast(item) for item in value) if isinstance(value, (tuple, list)) else value


def _shared_levels(student: DetectorOutputs, teacher: DetectorOutputs) -> tuple[list[Level], list[Level]] | None:
    """The levels of equal stride, or None where there is none, or where cells hold different numbers of anchors."""
    pairs = [(s, t) for s in student.levels for t in teacher.levels if s.stride == t.stride]
    if not pairs or any(s.stop - s.start != t.stop - t.start for s, t in pairs):
        return None
    return [s for s, _ in pairs], [t for _, t in pairs]


def _pick(values: Tensor, levels: Sequence[Level], every: Sequence[Level], axis: int) -> Tensor:
    """The anchors of ``levels`` along an axis; the tensor itself where these are all."""
    if len(levels) == len(every):
        return values
    return torch.cat([values.narrow(axis, level.start, level.stop - level.start) for level in levels], axis)


def _cut(outputs: DetectorOutputs, levels: list[Level]) -> DetectorOutputs:
    """Outputs on some of their levels, which get new places."""
    if len(levels) == len(outputs.levels):
        return outputs
    places, start = [], 0
    for level in levels:
        places.append(replace(level, start=start, stop=start + level.stop - level.start))
        start = places[-1].stop
    axes = {"logits": 2, "boxes": 1, "first_boxes": 1, "distribution": 1, "centerness": 1}
    whole = {name: getattr(outputs, name) for name in axes}
    cut: dict[str, Any] = {
        n: _pick(value, levels, outputs.levels, axes[n]) for n, value in whole.items() if value is not None
    }
    return replace(outputs, levels=tuple(places), **cut)


def _places(outputs: DetectorOutputs) -> str:
    return f"{outputs.logits.shape[-1]} anchors" if outputs.logits.ndim == 3 else f"{len(outputs.logits)} proposals"
