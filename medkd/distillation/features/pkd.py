"""PKD: features that correlate with the teacher's, whatever their scale."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Variant
from medkd.distillation.features.standardize import standardize
from medkd.distillation.options import positive
from medkd.distillation.pairs import AdaptedMethod


@METHODS.register("pkd")
class PKD(AdaptedMethod):
    """Distillation by Pearson correlation of features.

    Each channel is brought to zero mean and unit spread over batch and space, in both networks::

        L = w · mean_l ½ mean (norm(A_l S_l) − norm(T_l))²      ≈ w (1 − correlation)

    ``A`` is a trainable 1x1 convolution where the channels differ and nothing where they are equal; a student map of
    another size is resized linearly. ``variant="paper"`` sums over levels with the paper's weight for a two-stage
    detector, 6.

    Citation: W. Cao, Y. Zhang, J. Gao, A. Cheng, K. Cheng, J. Cheng, NeurIPS 2022, arXiv 2207.02039.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``; None means the variant's own.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "Cao, Zhang, Gao, Cheng, Cheng, Cheng; NeurIPS 2022; arXiv 2207.02039"
    detection = True
    per_logit, per_feature = 0.0, 5.0
    bound = "a few copies of the features"

    def __init__(
        self, context: Context, weight: float | None = None, taps: str = "decoder", variant: Variant = "default"
    ) -> None:
        super().__init__(context, "pkd", taps)
        self.paper = variant == "paper"
        own = 6.0 if self.paper else 1.0
        self.weight = positive("pkd", "weight", own if weight is None else weight)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``pkd``."""
        levels = []
        for s, t in self.adapted(student, teacher):
            levels.append(F.mse_loss(standardize(s), standardize(t)) / 2)
        return {"pkd": self.weight * self.joined(levels)}
