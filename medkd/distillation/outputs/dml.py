"""Distillation of the predicted structures as wholes: the soft Dice overlap with the teacher's probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Method
from medkd.distillation.options import positive

_SMOOTH = 1e-5  # as in the supervised Dice, so that both value an absent structure alike


@METHODS.register("dml")
class DML(Method):
    """Dice semimetric loss: the student's structures overlap the teacher's, whatever their size.

    For every sample and foreground class or region, ``p`` and ``q`` being the probabilities of student and teacher over
    the annotated voxels::

        L = w · mean over samples and classes of (1 − (2 Σ min(p, q) + s) / (Σ p + Σ q + s)),   s = 1e-5

    where ``2 min(p, q) = p + q − |p − q|``. It is the soft Dice loss where ``q`` is 0 or 1 and, unlike that, zero
    exactly where ``p = q`` for any ``q``. A mean over voxels as ``kd`` takes it is ruled by the background, from which
    a student of small structures then departs late; this loss weighs every structure alike, as the Dice of the labels
    does, and has its scale at weight 1.

    Citation: Z. Wang, T. Popordanoska, J. Bertels, R. Lemmens, M. B. Blaschko, Dice Semimetric Losses: Optimizing the
    Dice Score with Soft Labels, MICCAI 2023, arXiv 2303.16296 (the first of its two forms).

    Args:
        context: taps, outputs and geometry.
        weight: ``w``.
    """

    citation = "Wang, Popordanoska, Bertels, Lemmens, Blaschko; MICCAI 2023; arXiv 2303.16296"
    outputs_only = True
    by_sample = True
    per_logit, per_feature = 5.0, 0.0
    bound = "a few copies of the logits"

    def __init__(self, context: Context, weight: float = 1.0) -> None:
        super().__init__(context)
        self.weight = positive("dml", "weight", weight)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``dml``."""
        p, q = self._probabilities(student.logits), self._probabilities(teacher.logits)
        if target.valid is not None:
            p, q = p * target.valid, q * target.valid
        axes = tuple(range(2, p.ndim))
        overlap = (2 * torch.minimum(p, q).sum(axes) + _SMOOTH) / (p.sum(axes) + q.sum(axes) + _SMOOTH)
        return {"dml": self.weight * (1 - overlap).mean()}

    def _probabilities(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits) if self.context.regions else torch.softmax(logits, 1)[:, 1:]
