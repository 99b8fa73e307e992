"""DIST: the student keeps the teacher's relations among classes and among voxels, not its very probabilities."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Method, Variant
from medkd.distillation.options import at_least, positive

log = logging.getLogger(__name__)


@METHODS.register("dist")
class DIST(Method):
    """Distillation by correlation.

    ``P = softmax(z / τ)``, one row per voxel and one column per class::

        L = w τ² ( β (1 − mean over rows of corr(P_S, P_T)) + γ (1 − mean over columns of corr(P_S, P_T)) )

    with Pearson's correlation; a column holds all voxels of all samples. Only classes that are present in the batch's
    labels enter the second mean, since the probability of an absent class hardly varies and its correlation is noise.
    Regions: ``P = sigmoid(z / τ)``, and the second part only, because a voxel's regions are no distribution.
    Two classes have no first part either: the correlation of two numbers is ±1, whatever they are, so it teaches
    nothing; it is left out, which a warning says. ``variant="paper"`` takes all columns and the released ``τ = 4``.

    Citation: T. Huang, S. You, F. Wang, C. Qian, C. Xu, NeurIPS 2022, arXiv 2205.10536.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``.
        beta: ``β``, of the relations among classes.
        gamma: ``γ``, of the relations among voxels.
        temperature: ``τ``; None means 1, in the paper variant 4.
        variant: ``default`` or ``paper``.
    """

    citation = "Huang, You, Wang, Qian, Xu; NeurIPS 2022; arXiv 2205.10536"
    outputs_only = True
    per_logit, per_feature = 9.5, 0.0
    bound = "a few copies of the logits"

    def __init__(
        self,
        context: Context,
        weight: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float | None = None,
        variant: Variant = "default",
    ) -> None:
        super().__init__(context)
        self.paper = variant == "paper"
        self.weight = positive("dist", "weight", weight)
        self.beta = at_least("dist", "beta", beta, 0.0)
        self.gamma = at_least("dist", "gamma", gamma, 0.0)
        own = 4.0 if self.paper else 1.0
        self.temperature = positive("dist", "temperature", own if temperature is None else temperature)
        self.among_classes = not context.regions and context.num_outputs > 2
        if context.num_outputs == 2 and not context.regions:
            log.warning(
                "dist leaves out dist_inter: with two classes the correlation of a voxel's probabilities is 1 or -1, "
                "whatever they are, and teaches nothing."
            )

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``dist_intra`` and, for classes, ``dist_inter``."""
        p_s = self._probabilities(student.logits)
        p_t = self._probabilities(teacher.logits)
        counted = torch.ones_like(p_s[:, :1])
        if target.valid is not None:
            counted = target.valid.to(p_s.dtype)
        scale = self.weight * self.temperature**2
        intra = self._intra(p_s, p_t, counted, target)
        terms = {"dist_intra": scale * self.gamma * intra}
        if self.among_classes:
            rows = (1 - _correlation(p_s, p_t, None, (1,))) * counted
            terms["dist_inter"] = scale * self.beta * rows.sum() / counted.sum().clamp(min=1.0)
        return terms

    def _probabilities(self, logits: Tensor) -> Tensor:
        z = logits / self.temperature
        return torch.sigmoid(z) if self.context.regions else torch.softmax(z, 1)

    def _intra(self, p_s: Tensor, p_t: Tensor, counted: Tensor, target: Target) -> Tensor:
        across = (0, *range(2, p_s.ndim))
        apart = 1 - _correlation(p_s, p_t, counted, across).flatten()
        if self.paper:
            return apart.mean()
        present = self._present(target, counted).to(apart.dtype)
        return (apart * present).sum() / present.sum().clamp(min=1.0)

    def _present(self, target: Target, counted: Tensor) -> Tensor:
        """Which classes, or regions, have annotated voxels in the batch: ``(K,)``, bool."""
        labels, number = target.labels, self.context.num_outputs
        if self.context.regions:
            return (labels * counted > 0.5).transpose(0, 1).flatten(1).any(1)
        counts = torch.zeros(number, device=labels.device, dtype=counted.dtype)
        return counts.scatter_add_(0, labels.flatten(), counted.flatten()) > 0


def _correlation(a: Tensor, b: Tensor, counted: Tensor | None, axes: tuple[int, ...]) -> Tensor:
    """Pearson's correlation of ``a`` and ``b`` along ``axes`` (which are kept with size 1), over the counted voxels."""
    if counted is None:
        a = a - a.mean(axes, keepdim=True)
        b = b - b.mean(axes, keepdim=True)
    else:
        a = _centred(a, counted, axes)
        b = _centred(b, counted, axes)
    squares_a = a.square().sum(axes, keepdim=True)
    squares_b = b.square().sum(axes, keepdim=True)
    norms = (squares_a * squares_b).clamp(min=1e-16).sqrt()
    return (a * b).sum(axes, keepdim=True) / norms


def _centred(values: Tensor, counted: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The values less their mean over the counted voxels, and 0 elsewhere."""
    number = counted.sum(axes, keepdim=True).clamp(min=1.0)
    mean = (values * counted).sum(axes, keepdim=True) / number
    return (values - mean) * counted
