"""Intra-class feature variation: how far every voxel is from the mean of its class."""

from __future__ import annotations

import torch
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Variant, masked_mean
from medkd.distillation.options import at_least
from medkd.distillation.outputs.divergence import voxel_kl
from medkd.distillation.pairs import PairMethod, resize
from medkd.distillation.relations.prototypes import class_masks, similarity_to_means


@METHODS.register("ifvd")
class IFVD(PairMethod):
    """Intra-class feature variation distillation, without its adversarial part.

    Per sample, ``m_k`` is the mean feature of class ``k`` (background too) and ``s(v) = cos(F(v), m_{y(v)})``::

        L = w · mean_v (s_S(v) − s_T(v))² + w_kd · mean_v KL(p_T ‖ p_S)

    Labels are brought to the feature map by nearest neighbour, a teacher's map of another size linearly. Regions: every
    region ``k`` has two means, inside and outside, on all channels, and the squares are averaged over ``k``.
    ``variant="paper"``: ``w = 200``, and the released weight of the divergence, ``10 / K`` for classes.

    Citation: Y. Wang, W. Zhou, T. Jiang, X. Bai, Y. Xu, ECCV 2020, DOI 10.1007/978-3-030-58571-6_21.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``; None means the variant's own.
        kd_weight: ``w_kd``; None means the variant's own.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "Wang, Zhou, Jiang, Bai, Xu; ECCV 2020; DOI 10.1007/978-3-030-58571-6_21"
    by_sample = True
    per_logit, per_feature = 6.0, 3.0
    bound = "each voxel is compared with the means of the classes, never with other voxels"

    def __init__(
        self,
        context: Context,
        weight: float | None = None,
        kd_weight: float | None = None,
        taps: str = "last",
        variant: Variant = "default",
    ) -> None:
        super().__init__(context, "ifvd", taps)
        own = (200.0, 10.0 / context.num_outputs) if variant == "paper" else (10.0, 1.0)
        self.weight = at_least("ifvd", "weight", own[0] if weight is None else weight, 0.0)
        self.kd_weight = at_least("ifvd", "kd_weight", own[1] if kd_weight is None else kd_weight, 0.0)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``ifvd`` and ``ifvd_kd``."""
        levels = []
        for s, t in self.features(student, teacher):
            levels.append(self._level(s, t, target))
        divergence = voxel_kl(student.logits, teacher.logits, self.context.regions)
        return {
            "ifvd": self.weight * torch.stack(levels).mean(),
            "ifvd_kd": self.kd_weight * masked_mean(divergence, target.valid),
        }

    def _level(self, student: Tensor, teacher: Tensor, target: Target) -> Tensor:
        size = student.shape[2:]
        teacher = resize(teacher, size)
        masks = class_masks(target, self.context.num_outputs, self.context.regions, size, outside=True)
        groups = self._inside_and_outside(masks) if self.context.regions else [masks]
        return torch.stack([self._difference(student, teacher, group) for group in groups]).mean()

    def _difference(self, student: Tensor, teacher: Tensor, masks: Tensor) -> Tensor:
        """Mean over the voxels that are in one of the masks, which do not overlap."""
        chosen = masks.flatten(2)
        of_student = similarity_to_means(student, masks)
        of_teacher = similarity_to_means(teacher, masks)
        change = (of_student - of_teacher).square()
        return (change * chosen).sum() / chosen.sum().clamp(min=1.0)

    def _inside_and_outside(self, masks: Tensor) -> list[Tensor]:
        annotated = masks.amax(1, keepdim=True)
        return [torch.cat((m, annotated - m), 1) for m in masks[:, :-1].split(1, 1)]
