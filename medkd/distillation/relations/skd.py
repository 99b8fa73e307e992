"""Structured knowledge distillation: voxels' distributions and the likeness of places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Variant, masked_mean
from medkd.distillation.options import at_least
from medkd.distillation.outputs.divergence import voxel_kl
from medkd.distillation.pairs import PairMethod
from medkd.distillation.relations.nodes import halves, pool_alike


@METHODS.register("skd")
class SKD(PairMethod):
    """Structured knowledge distillation, without its adversarial part.

    A feature map is max-pooled to a grid of at most ``max_nodes`` places; ``a_ij`` is the cosine between the features
    of two places::

        L = w_voxel · mean_v KL(p_T ‖ p_S) + w_pair · mean_{n,i,j} (a_ij^T − a_ij^S)²

    Channels need not match, and a map of ``max_nodes²`` numbers per sample is all that is allocated. For regions the
    divergence is the sum of binary ones. ``variant="paper"``: windows of half a side
    (two places per axis, three where the side is odd), norms without gradient, and for the voxels
    ``10 · cross-entropy``, summed over the batch as released.

    Citation: Y. Liu, K. Chen, C. Liu, Z. Qin, Z. Luo, J. Wang, CVPR 2019, arXiv 1903.04197.

    Args:
        context: taps, outputs and geometry.
        voxel_weight: ``w_voxel``; None means the variant's own.
        pair_weight: ``w_pair``; None means 2, in the paper variant 1.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`.
        max_nodes: most places per sample; the paper variant has 2 or 3 per axis.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "Liu, Chen, Liu, Qin, Luo, Wang; CVPR 2019; arXiv 1903.04197"
    per_logit, per_feature = 6.0, 3.0
    bound = "at most max_nodes places per sample: max_nodes² cosines"

    def __init__(
        self,
        context: Context,
        voxel_weight: float | None = None,
        pair_weight: float | None = None,
        taps: str = "last",
        max_nodes: int = 216,
        variant: Variant = "default",
    ) -> None:
        super().__init__(context, "skd", taps)
        self.paper = variant == "paper"
        voxel_weight = (10.0 if self.paper else 1.0) if voxel_weight is None else voxel_weight
        self.voxel_weight = at_least("skd", "voxel_weight", voxel_weight, 0.0)
        pair_weight = (1.0 if self.paper else 2.0) if pair_weight is None else pair_weight
        self.pair_weight = at_least("skd", "pair_weight", pair_weight, 0.0)
        self.max_nodes = 3**context.rank if self.paper else int(at_least("skd", "max_nodes", max_nodes, 2))

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``skd_voxel`` and ``skd_pair``."""
        voxel = self._cross_entropy if self.paper else self._divergence
        pairs = torch.stack([self._pairs(s, t) for s, t in self.features(student, teacher)])
        return {
            "skd_voxel": self.voxel_weight * voxel(student.logits, teacher.logits, target),
            "skd_pair": self.pair_weight * pairs.mean(),
        }

    def pairwise(self, batch: int) -> int:
        """Cosines, their difference, its square and gradients."""
        return 8 * len(self.pairs) * batch * self.max_nodes**2

    def _divergence(self, student: Tensor, teacher: Tensor, target: Target) -> Tensor:
        return masked_mean(voxel_kl(student, teacher, self.context.regions), target.valid)

    def _cross_entropy(self, student: Tensor, teacher: Tensor, target: Target) -> Tensor:
        if self.context.regions:
            entropy = F.binary_cross_entropy_with_logits(student, torch.sigmoid(teacher), reduction="none")
        else:
            entropy = -torch.softmax(teacher, 1) * torch.log_softmax(student, 1)
        return masked_mean(entropy.sum(1, keepdim=True), target.valid) * len(student)

    def _pairs(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.paper:
            n_s, n_t = halves(student, teacher)
        else:
            n_s, n_t = pool_alike(student, teacher, self.max_nodes, "max")
        return (self._likeness(n_s) - self._likeness(n_t)).square().mean()

    def _likeness(self, nodes: Tensor) -> Tensor:
        """Cosines of places ``(B, C, nodes)``: ``(B, nodes, nodes)``."""
        norm = torch.linalg.vector_norm(nodes, dim=1, keepdim=True).clamp(min=1e-8)
        nodes = nodes / (norm.detach() if self.paper else norm)
        return nodes.transpose(1, 2) @ nodes
