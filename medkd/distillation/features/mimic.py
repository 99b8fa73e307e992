"""Feature imitation (FitNets): the student's adapted features equal the teacher's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Variant
from medkd.distillation.features.standardize import spread
from medkd.distillation.options import positive
from medkd.distillation.pairs import WEAK, AdaptedMethod


@METHODS.register("mimic")
class Mimic(AdaptedMethod):
    """FitNets' hint loss.

    ``L = w · mean_l mean (A_l S_l − T_l)² / var(T_l)``, with ``A`` a trainable 1x1 convolution where the channels
    differ; a student map of another size is resized linearly. Dividing by the teacher feature's variance makes the
    scale independent of the network (for a nearly constant map it is held up, see
    :func:`medkd.distillation.features.standardize.spread`); ``variant="paper"`` does not, always has the convolution,
    and sums over levels.
    With ``w = 1`` the term's gradient begins as strong as that of a U-Net's Dice and cross-entropy, and the student
    copies maps before it segments: 0.2 leaves the labels in the lead.

    Citation: A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio, ICLR 2015, arXiv 1412.6550.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``; None means 0.2 in segmentation, 1 in the paper variant and between detectors.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "Romero, Ballas, Kahou, Chassang, Gatta, Bengio; ICLR 2015; arXiv 1412.6550"
    detection = True
    per_logit, per_feature = 0.0, 3.0
    bound = "a few copies of the features"

    def __init__(
        self, context: Context, weight: float | None = None, taps: str = "decoder", variant: Variant = "default"
    ) -> None:
        paper = variant == "paper"
        super().__init__(context, "mimic", taps, always=paper, gain=1.0 if paper else WEAK)
        self.paper = paper
        own = 1.0 if self.paper or context.task == "detection" else 0.2
        self.weight = positive("mimic", "weight", own if weight is None else weight)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``mimic``."""
        levels = []
        for s, t in self.adapted(student, teacher):
            error = F.mse_loss(s, t)
            levels.append(error if self.paper else error / spread(t, s))
        return {"mimic": self.weight * self.joined(levels)}
