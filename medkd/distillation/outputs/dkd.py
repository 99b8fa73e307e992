"""Decoupled knowledge distillation: how sure the teacher is, and what else it considers, with separate weights."""

from __future__ import annotations

import torch
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Method, Variant, masked_mean
from medkd.distillation.options import at_least, positive
from medkd.distillation.outputs.target_class import others, others_probability, require_classes


@METHODS.register("dkd")
class DKD(Method):
    """Decoupled knowledge distillation.

    With ``b = (p[y], 1 − p[y])`` for the true class ``y`` and ``q`` the softmax over the other classes, both at
    temperature ``τ``::

        L = w τ² · mean_v ( α KL(b_T ‖ b_S) + β KL(q_T ‖ q_S) )

    ``log(1 − p[y])`` is taken from log-sum-exps, so that it never underflows. The default weighs the two parts alike at
    ``τ = 1``; ``variant="paper"`` is the released 3D setting ``τ = 4, β = 8, w = 0.1``. With two classes the second
    part is zero.

    Citation: B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang, CVPR 2022, arXiv 2203.08679.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``; None means the variant's own.
        alpha: ``α``.
        beta: ``β``; None means the variant's own.
        temperature: ``τ``; None means the variant's own.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the outputs are regions, or a parameter is out of its range.
    """

    citation = "Zhao, Cui, Song, Qiu, Liang; CVPR 2022; arXiv 2203.08679"
    outputs_only = True
    by_sample = True
    per_logit, per_feature = 11.5, 0.0
    bound = "a few copies of the logits"

    def __init__(
        self,
        context: Context,
        weight: float | None = None,
        alpha: float = 1.0,
        beta: float | None = None,
        temperature: float | None = None,
        variant: Variant = "default",
    ) -> None:
        super().__init__(context)
        require_classes("dkd", context)
        own = (0.1, 8.0, 4.0) if variant == "paper" else (1.0, 1.0, 1.0)
        self.weight = positive("dkd", "weight", own[0] if weight is None else weight)
        self.alpha = at_least("dkd", "alpha", alpha, 0.0)
        self.beta = at_least("dkd", "beta", own[1] if beta is None else beta, 0.0)
        self.temperature = positive("dkd", "temperature", own[2] if temperature is None else temperature)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``dkd_target`` and ``dkd_others``."""
        scale = self.weight * self.temperature**2
        sure, rest = decoupled(student.logits / self.temperature, teacher.logits / self.temperature, target.labels)
        return {
            "dkd_target": scale * self.alpha * masked_mean(sure, target.valid),
            "dkd_others": scale * self.beta * masked_mean(rest, target.valid),
        }


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``KL(b_T ‖ b_S)`` and ``KL(q_T ‖ q_S)`` per place, both ``(B, 1, *spatial)``.

    Args:
        student: logits ``(B, K, *spatial)``, divided by the temperature.
        teacher: the same of the teacher.
        labels: true class ``(B, 1, *spatial)``, int64.
    """
    b_s, b_t = _true_or_not(student, labels), _true_or_not(teacher, labels)
    q_s, q_t = others(student, labels), others(teacher, labels)
    sure = (b_t.exp() * (b_t - b_s)).sum(1, keepdim=True)
    return sure, (others_probability(q_t, labels) * (q_t - q_s)).sum(1, keepdim=True)


def _true_or_not(logits: Tensor, labels: Tensor) -> Tensor:
    """``(log p[y], log(1 − p[y]))``: ``(B, 2, *spatial)``."""
    true = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels, True)
    rest = logits.masked_fill(true, -torch.inf).logsumexp(1, keepdim=True)
    return torch.log_softmax(torch.cat((logits.gather(1, labels), rest), 1), 1)
