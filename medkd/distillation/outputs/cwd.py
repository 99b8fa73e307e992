"""Distillation of where each class lies: a distribution over space for every channel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Method, Variant
from medkd.distillation.options import positive

# Logits of voxels without annotation are replaced by this before the softmax over space: exp() of it is exactly 0 in
# float32, and unlike -inf it leaves no NaN in 0 · (−inf + inf).
MASKED = -1e4


@METHODS.register("cwd")
class CWD(Method):
    """Channel-wise distillation: each output channel, softened over space, imitates the teacher's.

    ``φ_c(v) = exp(z_c(v) / τ) / Σ_u exp(z_c(u) / τ)`` and::

        L = w τ² · mean over (n, c) of Σ_v φ_T log(φ_T / φ_S)

    Voxels without annotation take no part in the softmax. It makes no difference whether channels are classes or
    regions. ``variant="paper"`` takes the paper's weight for logits, 3: with a sure teacher the term then pulls a
    hundred times harder than the segmentation loss, so the default is 0.02.

    Citation: C. Shu, Y. Liu, J. Gao, Z. Yan, C. Shen, ICCV 2021, arXiv 2011.13256.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``; None means the variant's own.
        temperature: ``τ``.
        variant: ``default`` or ``paper``.
    """

    citation = "Shu, Liu, Gao, Yan, Shen; ICCV 2021; arXiv 2011.13256"
    outputs_only = True
    by_sample = True
    per_logit, per_feature = 8.0, 0.0
    bound = "a few copies of the logits"

    def __init__(
        self, context: Context, weight: float | None = None, temperature: float = 4.0, variant: Variant = "default"
    ) -> None:
        super().__init__(context)
        paper = variant == "paper"
        self.weight = positive("cwd", "weight", weight if weight is not None else (3.0 if paper else 0.02))
        self.temperature = positive("cwd", "temperature", temperature)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``cwd``."""
        log_s = self._over_space(student.logits, target.valid)
        log_t = self._over_space(teacher.logits, target.valid)
        divergence = (log_t.exp() * (log_t - log_s)).sum(-1)
        return {"cwd": self.weight * self.temperature**2 * divergence.mean()}

    def _over_space(self, logits: Tensor, valid: Tensor | None) -> Tensor:
        if valid is not None:
            logits = logits.masked_fill(~valid, MASKED * self.temperature)
        return F.log_softmax(logits.flatten(2) / self.temperature, -1)
