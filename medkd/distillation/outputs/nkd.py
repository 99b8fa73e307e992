"""Normalised knowledge distillation: a teacher-weighted cross-entropy and a normalised rest."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Method, masked_mean
from medkd.distillation.options import at_least, positive
from medkd.distillation.outputs.target_class import others, others_probability, require_classes


@METHODS.register("nkd")
class NKD(Method):
    """Normalised knowledge distillation.

    With ``y`` the true class of a voxel and ``q`` the softmax over the other classes at temperature ``τ``::

        L = w · mean_v ( − p_T[y] log p_S[y] − γ τ² Σ_{c≠y} q_T[c] log q_S[c] )

    Both are cross-entropies, so the smallest value is not zero. ``γ`` and ``τ`` are the paper's, whose scale depends on
    no size; its weight is 1. With two classes the second part is zero.

    Citation: Z. Yang, A. Zeng, Z. Li, T. Zhang, C. Yuan, Y. Li, "From Knowledge Distillation to Self-Knowledge
    Distillation", ICCV 2023, arXiv 2303.13005.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``.
        gamma: ``γ``.
        temperature: ``τ`` of the other classes.

    Raises:
        MethodError: the outputs are regions, or a parameter is out of its range.
    """

    citation = "Yang, Zeng, Li, Zhang, Yuan, Li; ICCV 2023; arXiv 2303.13005"
    outputs_only = True
    by_sample = True
    per_logit, per_feature = 8.0, 0.0
    bound = "a few copies of the logits"

    def __init__(self, context: Context, weight: float = 0.5, gamma: float = 1.5, temperature: float = 1.0) -> None:
        super().__init__(context)
        require_classes("nkd", context)
        self.weight = positive("nkd", "weight", weight)
        self.gamma = at_least("nkd", "gamma", gamma, 0.0)
        self.temperature = positive("nkd", "temperature", temperature)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``nkd_target`` and ``nkd_others``."""
        labels, t = target.labels, self.temperature
        log_p = F.log_softmax(student.logits, 1).gather(1, labels)
        p_t = F.softmax(teacher.logits, 1).gather(1, labels)
        log_q = others(student.logits / t, labels)
        q_t = others_probability(others(teacher.logits / t, labels), labels)
        rest = (q_t * log_q).sum(1, keepdim=True)
        return {
            "nkd_target": -self.weight * masked_mean(p_t * log_p, target.valid),
            "nkd_others": -self.weight * self.gamma * t**2 * masked_mean(rest, target.valid),
        }
