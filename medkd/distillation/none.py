"""The student alone, under the same budget as a distilled one."""

from __future__ import annotations

from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Method


@METHODS.register("none")
class NoDistillation(Method):
    """No terms and no teacher: the baseline that every method is judged against."""

    citation = "the student alone"
    detection = True
    outputs_only = True
    needs_teacher = False
    by_sample = True
    per_logit, per_feature = 0.0, 0.0
    bound = "nothing"

    def __init__(self, context: Context) -> None:
        super().__init__(context)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """No terms."""
        return {}
