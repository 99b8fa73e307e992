"""PKD: features that correlate with the teacher's, whatever their scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context
from medkd.distillation.features.standardize import standardize
from medkd.distillation.options import check_variant, positive
from medkd.distillation.pairs import PairMethod, adapter, resize


@METHODS.register("pkd")
class PKD(PairMethod):
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
        self, context: Context, weight: float | None = None, taps: str = "decoder", variant: str = "default"
    ) -> None:
        super().__init__(context, "pkd", taps)
        self.paper = check_variant("pkd", variant)
        self.weight = positive("pkd", "weight", weight if weight is not None else (6.0 if self.paper else 1.0))
        self.adapters = nn.ModuleList(adapter(pair) for pair in self.pairs)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``pkd``."""
        levels = []
        for adapt, (s, t) in zip(self.adapters, self.features(student, teacher), strict=True):
            levels.append((standardize(resize(adapt(s), t.shape[2:])) - standardize(t)).square().mean() / 2)
        total = torch.stack(levels)
        return {"pkd": self.weight * (total.sum() if self.paper else total.mean())}
