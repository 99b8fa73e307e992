"""Boundary constraints: the teacher's distribution on the boundary band, and a soft Hausdorff distance to its
prediction.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from medkd.core.features import Outputs, Progress, Target
from medkd.distillation.base import METHODS, Context, Method, Variant, zero_like
from medkd.distillation.boundaries.boundary import boundary_band, classes_of, occurring, one_hot, well_inside
from medkd.distillation.boundaries.distance import boundary_weights
from medkd.distillation.boundaries.distance_batch import MOST_CHUNKS
from medkd.distillation.options import at_least
from medkd.distillation.outputs.divergence import softmax_kl

Distances = Literal["relative", "voxel", "mm"]


@METHODS.register("bckd")
class BCKD(Method):
    """Boundary constraint distillation, the logit half of ACF-BCKD: ``L = w_h α L_hard + w_s (1 − α) L_soft``.

    **Hard**: for every sample ``n`` and class ``k`` (background included) the band ``B_nk`` holds the voxels whose
    neighbours lie partly in and partly out of class ``k`` of the ground truth. Default: the mean over the pairs ``(n,
    k)`` with a band of the mean over ``B_nk`` of ``KL(p_T ‖ p_S)``, with replicated borders. Regions: ``Σ_c (σ(z_S) −
    σ(z_T))²`` in place of the divergence. Voxels next to one without annotation are left out. Paper: ``Σ_nk 1 / (K
    |B_nk|) Σ_v KL``, and a band also where the patch cuts a structure.

    **Soft**: with ``t`` the teacher's hard prediction, ``d(m) = EDT(m) + EDT(1 − m)`` (0 where ``m`` is empty or full),
    and ``k`` over the foreground classes or regions::

        L_soft = log(1 + mean_{n,k,v} (p_S − t)² · (d(p_S > ½)² + d(t)²))

    Distances are exact, in units of the mean voxel (default: spacing divided by its geometric mean), of the voxel
    (paper) or in mm. Classes that are in neither mask cost nothing. Voxels without annotation have no weight, but what
    is predicted there still is a place to be near to.

    **Schedule**: ``α = max(floor, 1 − decay · epoch)``, from the boundary of the truth towards the teacher's shape. By
    default ``decay`` is such that ``floor`` is reached at the end of the run, however long it is.

    Citation: X. Yu et al., Expert Systems with Applications 262:125670, 2025; the soft term after D. Karimi, S. E.
    Salcudean, IEEE TMI 39(2), 2020, arXiv 1904.10030.

    Args:
        context: taps, outputs and geometry.
        hard_weight: ``w_h``; None means 0.2, in the paper variant 1. The band is a small part of the patch, so that at
            weight 1 this term pulls several times harder than the segmentation loss.
        soft_weight: ``w_s``.
        floor: smallest ``α``; None means 0.5, in the paper variant 0.001 (its BTCV setting; WORD and BraTS use 0.5).
        decay: fall of ``α`` per epoch; None means over the whole run, in the paper variant 0.001 (WORD 0.0015, BraTS
            0.01).
        distances: ``relative``, ``voxel`` or ``mm``; None means ``relative``, in the paper variant ``voxel``.
        variant: ``default`` or ``paper``.
    """

    citation = "Yu, Teng, Zhang, Zheng, Chen; Expert Systems with Applications 262:125670, 2025"
    outputs_only = True
    per_logit, per_feature = 10.0, 0.0
    bound = "exact distances axis after axis, class by class on the CPU, in chunks on a GPU; no pairs of voxels"

    def __init__(
        self,
        context: Context,
        hard_weight: float | None = None,
        soft_weight: float = 1.0,
        floor: float | None = None,
        decay: float | None = None,
        distances: Distances | None = None,
        variant: Variant = "default",
    ) -> None:
        super().__init__(context)
        self.paper = variant == "paper"
        own = (1.0, 0.001, 0.001) if self.paper else (0.2, 0.5, None)
        self.hard_weight = at_least("bckd", "hard_weight", own[0] if hard_weight is None else hard_weight, 0.0)
        self.soft_weight = at_least("bckd", "soft_weight", soft_weight, 0.0)
        self.floor = at_least("bckd", "floor", own[1] if floor is None else floor, 0.0)
        decay = own[2] if decay is None else decay
        self.decay = None if decay is None else at_least("bckd", "decay", decay, 0.0)
        self.spacing = _spacing(distances or ("voxel" if self.paper else "relative"), context.spacing)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``hard_boundary`` and ``soft_boundary``; one whose weight is 0 now is not computed."""
        alpha = self.alpha(target.progress)
        hard, soft = self.hard_weight * alpha, self.soft_weight * (1.0 - alpha)
        terms = {"hard_boundary": zero_like(student.logits), "soft_boundary": zero_like(student.logits)}
        if hard > 0:
            terms["hard_boundary"] = hard * self.hard_boundary(student.logits, teacher.logits, target)
        if soft > 0:
            terms["soft_boundary"] = soft * self.soft_boundary(student.logits, teacher.logits, target.valid)
        return terms

    def announced(self, logits: int, features: int, batch: int) -> int:
        """Besides, what the distances of all masks at once take on a GPU: their fields, and a chunk of sums."""
        longest = max(self.context.patch_size)
        fields = 12 * logits
        chunk = 4 * logits * longest // MOST_CHUNKS
        return super().announced(logits, features, batch) + fields + chunk

    def alpha(self, progress: Progress) -> float:
        """Share of the hard term, a pure function of the epoch."""
        if self.decay is None:
            return 1.0 - (1.0 - min(self.floor, 1.0)) * progress.fraction
        return max(self.floor, 1.0 - self.decay * progress.epoch)

    def hard_boundary(self, student: Tensor, teacher: Tensor, target: Target) -> Tensor:
        """The hard term of logits ``(B, K, *spatial)``, without weight."""
        member = self._bands(target).flatten(2).float()
        divergence = self._divergence(student, teacher).flatten(2)
        count = member.sum(2)
        sums = (member @ divergence.transpose(1, 2)).squeeze(2)
        means = sums / count.clamp(min=1.0)
        if self.paper:
            return means.sum() / student.shape[1]
        return means.sum() / (count > 0).sum().clamp(min=1)

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Per voxel: ``(B, 1, *spatial)``."""
        if self.context.regions:
            apart = torch.sigmoid(student) - torch.sigmoid(teacher)
            return apart.square().sum(1, keepdim=True)
        return softmax_kl(student, teacher)

    def _bands(self, target: Target) -> Tensor:
        """Bands ``(B, classes present or K, *spatial)``, bool."""
        labels = target.labels
        if self.context.regions:
            masks = labels > 0.5
        else:
            masks = one_hot(labels, occurring(labels, self.context.num_outputs))
        flat = boundary_band(masks.flatten(0, 1), replicate=not self.paper)
        bands = flat.view_as(masks)
        if target.valid is None:
            return bands
        return bands & well_inside(target.valid[:, 0]).unsqueeze(1)

    def soft_boundary(self, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        """The soft term of logits ``(B, K, *spatial)``, without weight."""
        probability, truth = self._foreground(student, teacher)
        with torch.no_grad():
            kinds = [masks.flatten(0, 1) for masks in (probability > 0.5, truth)]
            weight = boundary_weights(kinds, self.spacing).view_as(probability)
            if valid is None:
                weight /= weight.numel()
            else:
                weight *= valid
                weight /= valid.expand_as(weight).sum().clamp(min=1)
        error = (probability - truth.float()).square()
        return torch.log1p((error * weight).sum())

    def _foreground(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The student's probabilities and the teacher's hard prediction (bool) of the foreground classes or regions."""
        if self.context.regions:
            return torch.sigmoid(student), teacher >= 0
        predicted = teacher.argmax(1, keepdim=True)
        truth = one_hot(predicted, classes_of(predicted, teacher.shape[1], first=1))
        return torch.softmax(student, 1)[:, 1:], truth


def _spacing(distances: Distances, spacing: tuple[float, ...]) -> tuple[float, ...]:
    if distances == "mm":
        return spacing
    if distances == "voxel":
        return (1.0,) * len(spacing)
    mean = float(torch.tensor(spacing, dtype=torch.float64).log().mean().exp())
    return tuple(s / mean for s in spacing)
