"""Distillation of the output distribution, voxel by voxel."""

from __future__ import annotations

import torch
from torch import Tensor

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Method, Variant, masked_mean
from medkd.distillation.options import positive
from medkd.distillation.outputs.divergence import voxel_kl


@METHODS.register("kd")
class KD(Method):
    """Knowledge distillation: the student imitates the teacher's softened class probabilities.

    Default::

        L = w τ² · mean over annotated voxels of KL(p_T ‖ p_S),   p = softmax(z / τ) over classes

    which depends neither on the patch size nor on the batch nor on the number of classes. For regions the divergence is
    the sum over channels of the binary one. ``variant="paper"`` is the released code of the 3D comparison: ``10 · mean
    over voxels and classes`` of the same divergence at ``τ = 1`` without ``τ²`` (the 2D library has it: ``squared``),
    and for regions ``10 · mean (σ(z_S) − σ(z_T))²``, which is what that code computes of classes as well unless it is
    told otherwise (``sigmoid``).

    Citation: G. Hinton, O. Vinyals, J. Dean, NIPS Deep Learning Workshop 2014, arXiv 1503.02531.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``; None means 1/4, for detectors 1, and 10 in the paper variant. The gradient of the divergence,
            ``p_S − p_T``, is that of the cross-entropy with the labels, ``p_S − y``, as long as teacher and labels
            agree. So ``w`` is what the loss per voxel gains on the Dice of the labels, and students of small structures
            that are paid twice per voxel predict background longer.
        temperature: ``τ``.
        variant: ``default`` or ``paper``.
        squared: multiply the paper variant by ``τ²``.
        sigmoid: the paper variant compares classes by their sigmoids, too.
    """

    citation = "Hinton, Vinyals, Dean; NIPS-W 2014; arXiv 1503.02531"
    detection = True
    outputs_only = True
    by_sample = True
    per_logit, per_feature = 6.0, 0.0
    bound = "a few copies of the logits"

    def __init__(
        self,
        context: Context,
        weight: float | None = None,
        temperature: float = 1.0,
        variant: Variant = "default",
        squared: bool = False,
        sigmoid: bool = False,
    ) -> None:
        super().__init__(context)
        if (sigmoid or squared) and variant != "paper":
            raise MethodError("kd.sigmoid and kd.squared are readings of released code; add kd.variant=paper.")
        self.squared = squared
        self.sigmoids = context.regions or sigmoid
        self.paper = variant == "paper"
        self.weight = positive("kd", "weight", weight if weight is not None else self._default())
        self.temperature = positive("kd", "temperature", temperature)

    def _default(self) -> float:
        if self.paper:
            return 10.0
        return 1.0 if self.context.task == "detection" else 0.25

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``kd``."""
        if self.paper:
            return {"kd": self.weight * self._paper(student.logits, teacher.logits, target.valid)}
        divergence = voxel_kl(student.logits, teacher.logits, self.context.regions, self.temperature)
        return {"kd": self.weight * self.temperature**2 * masked_mean(divergence, target.valid)}

    def _paper(self, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        t = self.temperature
        if self.sigmoids:
            return masked_mean((torch.sigmoid(student / t) - torch.sigmoid(teacher / t)) ** 2, valid)
        scale = t**2 if self.squared else 1.0
        return scale * masked_mean(voxel_kl(student, teacher, False, t), valid) / student.shape[1]
