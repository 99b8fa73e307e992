"""CrossKD: the teacher finishes what the student began."""

from __future__ import annotations

import torch
from torch import Tensor

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, masked_mean
from medkd.distillation.features.standardize import channel_statistics
from medkd.distillation.options import positive
from medkd.distillation.outputs.divergence import voxel_kl
from medkd.distillation.pairs import AdaptedMethod


@METHODS.register("crosskd")
class CrossKD(AdaptedMethod):
    """Cross-head distillation, carried over from detectors to segmentation.

    The student's decoder feature, brought to the teacher's channels by a trainable 1x1 convolution where they differ
    and to its size linearly, is given the teacher feature's mean and spread per channel over batch and space; the
    frozen rest of the teacher (decoder and head) turns it into cross logits ``z_X``, which imitate the teacher's::

        L = w τ² · mean_v KL(p_T ‖ p_X)

    Gradient reaches the student's layers before the tap only, so the student's own head learns from the labels alone.
    Regions: the sum of binary divergences. It costs the rest of the teacher, forward and backward.

    Citation: J. Wang, Y. Chen, Z. Zheng, X. Li, M.-M. Cheng, Q. Hou, CVPR 2024, arXiv 2306.11369.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``.
        temperature: ``τ``.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`; the teacher must be able to continue from
            its tap.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "Wang, Chen, Zheng, Li, Cheng, Hou; CVPR 2024; arXiv 2306.11369"
    continues_teacher = True
    per_logit, per_feature = 6.0, 6.0
    bound = "a few copies of logits and features, and what the teacher's remaining layers keep for the gradient"

    def __init__(self, context: Context, weight: float = 1.0, temperature: float = 1.0, taps: str = "last") -> None:
        super().__init__(context, "crosskd", taps)
        self.weight = positive("crosskd", "weight", weight)
        self.temperature = positive("crosskd", "temperature", temperature)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``crosskd``."""
        if teacher.forward_from is None:
            raise MethodError("crosskd needs a teacher that can be continued from a tap.")
        levels = []
        for (_, tap), (s, t) in zip(self.pairs, self.adapted(student, teacher), strict=True):
            crossed = teacher.forward_from(tap.name, align(s, t))
            divergence = voxel_kl(crossed, teacher.logits, self.context.regions, self.temperature)
            levels.append(masked_mean(divergence, target.valid))
        return {"crosskd": self.weight * self.temperature**2 * torch.stack(levels).mean()}


def align(student: Tensor, teacher: Tensor, eps: float = 1e-6) -> Tensor:
    """Give ``student`` ``(B, C, *spatial)`` the teacher's mean and spread per channel over batch and space."""
    (mean_s, std_s), (mean_t, std_t) = channel_statistics(student), channel_statistics(teacher)
    return (student - mean_s) / (std_s + eps) * std_t + mean_t
