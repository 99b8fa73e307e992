"""CrossKD: the teacher's head finishes what the student's towers began."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Tap, Target
from medkd.detection.base import DetectionTarget, Detector, DetectorOutputs
from medkd.detection.methods.registry import DETECTION_METHODS
from medkd.detection.tv.losses import overlap_loss
from medkd.distillation.base import Context, Method, Needs, Variant
from medkd.distillation.features.crosskd import align
from medkd.distillation.options import at_least, positive
from medkd.distillation.outputs.divergence import softmax_kl
from medkd.distillation.pairs import adapter, resize

_TOWERS = ("class", "box")
# weights of the class and the box term; the paper's
_OWN = {"fcos": (0.4, 0.75)}
_OTHERS = (1.0, 1.0)


@DETECTION_METHODS.register("crosskd")
class DetectorCrossKD(Method):
    """Cross-head distillation between dense detectors (RetinaNet, FCOS, GFL, ATSS, YOLO).

    Of every level that both have, the student's feature inside a tower (before the activation; brought to the teacher's
    channels by a trainable 1x1 convolution where they differ) is given the teacher feature's mean and spread per
    channel over batch and space; the rest of the teacher's frozen tower makes cross predictions of it. With class
    logits ``z_X`` and ``z_T``, ``r`` the teacher's highest class probability of an anchor, zero where the student's
    assignment leaves the anchor out (``m = 0``), and ``P`` the student's positive anchors::

        L_class = w_c Σ m |σ(z_X) − σ(z_T)|^γ BCE(z_X, σ(z_T)) / max(P, 1)
        L_box   = w_b Σ r d(b_X, b_T) / max(Σ r, 1)

    ``d`` is the divergence ``KL(p_T ‖ p_X)`` of the distributions over each side's distance, summed over the sides,
    where the teacher has them, and the generalised IoU loss of the decoded boxes elsewhere. Gradient reaches the
    student's layers before the taps only, so its own predictors learn from the labels alone.

    ``variant="paper"`` divides the box term by ``max(P, 1)``, too, where boxes are compared by their overlap, and where
    both have a centre-ness (ATSS, FCOS) adds the authors' term for ATSS: the binary cross-entropy of the student's
    centre-ness with the teacher's at the positive anchors, over ``max(P, 1)``. Apart from the original in both
    variants: a batch without boxes divides by 1 instead of (almost) 0, and FCOS has the generalised IoU loss and
    divides by its positives instead of the sum of their centre-ness.

    Citation: J. Wang, Y. Chen, Z. Zheng, X. Li, M.-M. Cheng, Q. Hou, CVPR 2024, arXiv 2306.11369.

    Args:
        context: taps, outputs and geometry.
        class_weight: ``w_c``; None means the paper's: 1, for FCOS 0.4.
        box_weight: ``w_b``; None means the paper's: 1, for FCOS 0.75.
        gamma: ``γ``.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: a detector is two-stage, the heads share no level, or a parameter is out of its range.
    """

    citation = "Wang, Chen, Zheng, Li, Cheng, Hou; CVPR 2024; arXiv 2306.11369"
    detection = True
    continues_teacher = True
    dense_heads = True

    def __init__(
        self,
        context: Context,
        class_weight: float | None = None,
        box_weight: float | None = None,
        gamma: float = 1.0,
        variant: Variant = "default",
    ) -> None:
        super().__init__(context)
        if not context.regions:
            raise MethodError(
                "crosskd finishes the towers of dense heads, which two-stage detectors lack; use kd, or a method on "
                "features."
            )
        self.pairs = tower_pairs(context)
        self.paper = variant == "paper"
        self.class_weight = (
            _OTHERS[0] if class_weight is None else at_least("crosskd", "class_weight", class_weight, 0.0)
        )
        self.box_weight = _OTHERS[1] if box_weight is None else at_least("crosskd", "box_weight", box_weight, 0.0)
        self._own = class_weight is None, box_weight is None
        self.gamma = positive("crosskd", "gamma", gamma)
        self.adapters = nn.ModuleList(adapter(pair) for pair in self.pairs)

    def read(self, teacher: Detector) -> None:
        """Take the weights of the teacher's kind of head, where none were given."""
        own = _OWN.get(teacher.spec.name.removeprefix("mmdet_").partition("_")[0], _OTHERS)
        self.class_weight = own[0] if self._own[0] else self.class_weight
        self.box_weight = own[1] if self._own[1] else self.box_weight

    def needs(self) -> Needs:
        """The towers' taps."""
        return Needs(tuple(s.name for s, _ in self.pairs), tuple(t.name for _, t in self.pairs))

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``crosskd_class`` and ``crosskd_box``, in the paper's variant also ``crosskd_centerness``."""
        teacher, target = _checked(teacher, target)
        assert teacher.forward_from is not None and target.valid is not None
        places = {level.tap: slice(level.start, level.stop) for level in teacher.levels}
        sums: dict[str, list[Tensor]] = {part: [] for part in _TOWERS}
        for adapt, (s, t) in zip(self.adapters, self.pairs, strict=True):
            level, _, part = t.name.partition(".")
            taught = teacher.features[t.name]
            crossed = teacher.forward_from(
                t.name, align(resize(adapt(student.features[s.name]), taught.shape[2:]), taught)
            )
            here = places[level]
            if part == "class":
                sums[part].append(self._class_sum(crossed, teacher.logits[:, :, here], target.labels[:, :, here] != -2))
            else:
                sums[part].append((target.valid[:, 0, here] * box_error(crossed, teacher, here)).sum())
        number, certainty = (target.labels >= 0).sum().clamp(min=1), target.valid.sum().clamp(min=1.0)
        by_overlap = self.paper and teacher.distribution is None
        terms = {
            "crosskd_class": self.class_weight * torch.stack(sums["class"]).sum() / number,
            "crosskd_box": self.box_weight * torch.stack(sums["box"]).sum() / (number if by_overlap else certainty),
        }
        return terms | (self._centerness(student, teacher, target, number) if self.paper else {})

    def _centerness(
        self, student: Outputs, teacher: DetectorOutputs, target: DetectionTarget, number: Tensor
    ) -> dict[str, Tensor]:
        """The centre-ness of the positive anchors, where both detectors have one."""
        ours: Tensor | None = getattr(student, "centerness", None)
        if ours is None or teacher.centerness is None:
            return {}
        apart = F.binary_cross_entropy_with_logits(ours, teacher.centerness.sigmoid(), reduction="none")
        return {"crosskd_centerness": (apart * (target.labels[:, 0] >= 0)).sum() / number}

    def _class_sum(self, crossed: Tensor, taught: Tensor, counts: Tensor) -> Tensor:
        wanted = torch.sigmoid(taught)
        focus = (torch.sigmoid(crossed) - wanted).abs().pow(self.gamma)
        return (counts * focus * F.binary_cross_entropy_with_logits(crossed, wanted, reduction="none")).sum()


def _checked(teacher: Outputs, target: Target) -> tuple[DetectorOutputs, DetectionTarget]:
    """The same, with everything that the terms need.

    Raises:
        MethodError: something is missing.
    """
    dense = isinstance(teacher, DetectorOutputs) and teacher.forward_from is not None
    if not isinstance(teacher, DetectorOutputs) or not isinstance(target, DetectionTarget) or not dense:
        raise MethodError("crosskd needs a teacher that can be continued from its towers.")
    if target.valid is None:
        raise MethodError("crosskd needs the teacher's certainty per anchor, which DetectorDistiller gives.")
    return teacher, target


def tower_pairs(context: Context) -> list[tuple[Tap, Tap]]:
    """The towers' taps of equal stride, finest first, class before box.

    Raises:
        MethodError: one of the detectors publishes none, or they share no stride.
    """
    ours, theirs = _towers(context.student_taps), _towers(context.teacher_taps)
    shared = [key for key in sorted(ours, key=_finest_first) if key in theirs]
    if {part for _, part in shared} != set(_TOWERS):
        known = [", ".join(t.name for t in taps.values()) or "none" for taps in (ours, theirs)]
        raise MethodError(
            f"crosskd found no towers of equal stride to cross: the student has {known[0]}, the teacher {known[1]}."
        )
    return [(ours[key], theirs[key]) for key in shared]


def _towers(taps: Sequence[Tap]) -> dict[tuple[int, str], Tap]:
    """The taps in towers, by stride and by what the tower predicts."""
    return {(tap.stride[0], tap.name.partition(".")[2]): tap for tap in taps if tap.stage == "head"}


def _finest_first(key: tuple[int, str]) -> tuple[int, int]:
    return key[0], _TOWERS.index(key[1]) if key[1] in _TOWERS else len(_TOWERS)


def box_error(crossed: Tensor, teacher: DetectorOutputs, here: slice) -> Tensor:
    """How far the cross boxes of a level are from the teacher's, ``(B, anchors)``."""
    if teacher.distribution is not None:
        return softmax_kl(crossed.movedim(3, 1), teacher.distribution[:, here].movedim(3, 1))[:, 0].sum(2)
    if teacher.boxes is None:
        raise MethodError("crosskd compares boxes, but the teacher gives neither boxes nor distributions.")
    return overlap_loss(crossed, teacher.boxes[:, here])
