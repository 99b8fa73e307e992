"""Class-affinity distillation: which classes the network takes for one another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Method, Variant
from medkd.distillation.options import positive


@METHODS.register("cakd")
class CAKD(Method):
    """Class-affinity knowledge distillation of LCOV-Net.

    Per sample, ``P`` (classes by voxels) holds the probabilities and ``G = P Pᵀ / V`` says which classes overlap::

        L = w · mean_n (1 − mean over columns of cos(G_S, G_T))

    Regions: ``P`` holds the sigmoids. ``variant="paper"`` leaves out the constant 1, as the authors do. The weight is
    the authors' 0.1: which classes overlap says nothing about where they are, so a stronger term holds back what the
    labels teach.

    Citation: Q. Zhao, L. Zhong, J. Xiao, J. Zhang, Y. Chen, W. Liao, S. Zhang, G. Wang, IEEE TMI 42(9), 2023, DOI
    10.1109/TMI.2023.3262680.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``.
        variant: ``default`` or ``paper``.
    """

    citation = "Zhao, Zhong, Xiao, Zhang, Chen, Liao, Zhang, Wang; IEEE TMI 2023; DOI 10.1109/TMI.2023.3262680"
    outputs_only = True
    per_logit, per_feature = 5.0, 0.0
    bound = "class sums only: K² cosines and a few copies of the logits"

    def __init__(self, context: Context, weight: float = 0.1, variant: Variant = "default") -> None:
        super().__init__(context)
        self.paper = variant == "paper"
        self.weight = positive("cakd", "weight", weight)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``cakd``."""
        g_s = self._affinity(student.logits, target.valid)
        g_t = self._affinity(teacher.logits, target.valid)
        likeness = F.cosine_similarity(g_s, g_t, dim=1, eps=1e-12).mean()
        return {"cakd": self.weight * (-likeness if self.paper else 1 - likeness)}

    def _affinity(self, logits: Tensor, valid: Tensor | None) -> Tensor:
        """``(B, K, K)``."""
        p = torch.sigmoid(logits) if self.context.regions else torch.softmax(logits, 1)
        p = (p if valid is None else p * valid).flatten(2)
        return p @ p.transpose(1, 2) / p.shape[2]
