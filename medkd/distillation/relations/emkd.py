"""EMKD: predictions, importance maps and the likeness of organs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Variant, masked_mean
from medkd.distillation.features.attention_map import attention_distance, resize_nearest
from medkd.distillation.options import at_least, positive
from medkd.distillation.outputs.divergence import voxel_kl
from medkd.distillation.pairs import PairMethod
from medkd.distillation.relations.prototypes import class_masks, masked_means


@METHODS.register("emkd")
class EMKD(PairMethod):
    """Efficient medical segmentation by distillation: three terms.

    - prediction maps: ``w_p τ² mean_v KL(p_T ‖ p_S)``;
    - importance maps: ``w_i · mean_l mean_n ‖ q(S_l) − q(T_l) ‖²`` with ``q`` the channel mean of 4th powers, scaled to
      unit norm;
    - region affinity: ``w_r · mean_l mean_n mean_{i<j} (cos(m_i, m_j)_S − cos(m_i, m_j)_T)²`` over the pairs of classes
      present in image ``n``, ``m_k`` the mean feature of class ``k`` there. Regions: the regions and what is in none of
      them.

    Channels need not match; maps of another size are resized by nearest neighbour. ``variant="paper"`` sums over levels
    and over class pairs, as released.

    Why these weights: ``w_p τ² = 1`` makes the first term ``kd``'s. Squared distances of unit-norm maps lie in [0, 2],
    mean squared differences of cosines in [0, 4], so patch, levels and number of classes do not matter; ``w_r`` is the
    paper's. On 4th powers few voxels carry the norm, whose gradient is steep: the paper's 0.9 for ``w_i`` would pull 13
    times as hard as the supervised loss on synthetic organs, 0.1 pulls 1.5 times
    (``benchmarks/results/distillation_40x56x40.json``), the affinity likewise 1.5 times. On MR hippocampi the terms
    pull 0.97, 0.17 and 0.36 of it in the first epoch and 0.27, 0.05 and 0.02 in the last. Nothing was tuned on
    validation cases.

    Citation: D. Qin et al., "Efficient Medical Image Segmentation Based on Knowledge Distillation", IEEE TMI 40(12),
    2021, arXiv 2108.09987.

    Args:
        context: taps, outputs and geometry.
        prediction_weight: ``w_p``.
        importance_weight: ``w_i``; None means 0.1, in the paper variant 0.9.
        affinity_weight: ``w_r``.
        temperature: ``τ``; None means 1, in the paper variant 4.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "Qin et al.; IEEE TMI 2021; arXiv 2108.09987"
    by_sample = True
    per_logit, per_feature = 6.0, 3.0
    bound = "one energy map per level, K² cosines of class means"

    def __init__(
        self,
        context: Context,
        prediction_weight: float | None = None,
        importance_weight: float | None = None,
        affinity_weight: float = 0.9,
        temperature: float | None = None,
        taps: str = "encoder",
        variant: Variant = "default",
    ) -> None:
        super().__init__(context, "emkd", taps)
        self.paper = variant == "paper"
        own = (0.1, 4.0, 0.9) if self.paper else (1.0, 1.0, 0.1)
        prediction = own[0] if prediction_weight is None else prediction_weight
        importance = own[2] if importance_weight is None else importance_weight
        self.prediction_weight = at_least("emkd", "prediction_weight", prediction, 0.0)
        self.importance_weight = at_least("emkd", "importance_weight", importance, 0.0)
        self.affinity_weight = at_least("emkd", "affinity_weight", affinity_weight, 0.0)
        self.temperature = positive("emkd", "temperature", own[1] if temperature is None else temperature)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``emkd_prediction``, ``emkd_importance`` and ``emkd_affinity``."""
        t = self.temperature
        divergence = voxel_kl(student.logits, teacher.logits, self.context.regions, t)
        prediction = masked_mean(divergence, target.valid)
        importance = []
        affinity = []
        for of_student, of_teacher in self.features(student, teacher):
            importance.append(self._importance(of_student, of_teacher))
            affinity.append(self._affinity(of_student, of_teacher, target))
        return {
            "emkd_prediction": self.prediction_weight * t**2 * prediction,
            "emkd_importance": self.importance_weight * self.joined(importance),
            "emkd_affinity": self.affinity_weight * self.joined(affinity),
        }

    def _importance(self, student: Tensor, teacher: Tensor) -> Tensor:
        energy_s = student.square().square().mean(1)
        energy_t = teacher.square().square().mean(1)
        resized = resize_nearest(energy_s, energy_t.shape[1:])
        return attention_distance(resized, energy_t)

    def _affinity(self, student: Tensor, teacher: Tensor, target: Target) -> Tensor:
        """The mean over images of the squared differences, summed (default: averaged) over an image's pairs."""
        c_s, present = self._cosines(student, target)
        c_t, also = self._cosines(teacher, target)
        both = present & also
        chosen = torch.triu(both.unsqueeze(1) & both.unsqueeze(2), 1)
        squares = ((c_s - c_t).square() * chosen).sum((1, 2))
        if self.paper:
            return squares.mean()
        pairs = chosen.sum((1, 2)).clamp(min=1)
        return (squares / pairs).mean()

    def _cosines(self, features: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Cosines between the classes' mean features ``(B, K, K)``, and which classes are present ``(B, K)``."""
        masks = class_masks(target, self.context.num_outputs, self.context.regions, features.shape[2:], outside=True)
        means = F.normalize(masked_means(features, masks), dim=2, eps=1e-8)
        return means @ means.transpose(1, 2), masks.flatten(2).any(2)
