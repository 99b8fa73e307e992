"""Relational knowledge distillation: distances and angles among places instead of the features themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context
from medkd.distillation.options import at_least, check_variant
from medkd.distillation.pairs import PairMethod
from medkd.distillation.relations.nodes import cells_per_axis, pool_nodes


@METHODS.register("rkd")
class RKD(PairMethod):
    """Relational knowledge distillation.

    The paper relates whole images of a batch; a segmentation batch holds two or three, so here the embeddings ``e`` are
    the cells of a grid over the feature map (average-pooled, all samples together, at most ``max_nodes``). With ``ψ_D =
    ‖e_i − e_j‖`` divided by its mean over all pairs, and ``ψ_A`` the cosine of the angle at ``j`` in every triple::

        L = w_D · mean huber(ψ_D^S, ψ_D^T) + w_A · mean huber(ψ_A^S, ψ_A^T)

    with the Huber loss of threshold 1. Channels need not match. The angles take ``max_nodes³`` numbers.
    ``variant="paper"`` takes the paper's weights, 25 and 50.

    Citation: W. Park, D. Kim, Y. Lu, M. Cho, CVPR 2019, arXiv 1904.05068.

    Args:
        context: taps, outputs and geometry.
        distance_weight: ``w_D``; None means the variant's own.
        angle_weight: ``w_A``; None means the variant's own.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`.
        max_nodes: most embeddings in a batch.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "Park, Kim, Lu, Cho; CVPR 2019; arXiv 1904.05068"
    per_logit, per_feature = 0.0, 2.0
    bound = "at most max_nodes places in all: max_nodes³ angles and max_nodes² differences of features"

    def __init__(
        self,
        context: Context,
        distance_weight: float | None = None,
        angle_weight: float | None = None,
        taps: str = "bottleneck",
        max_nodes: int = 64,
        variant: str = "default",
    ) -> None:
        super().__init__(context, "rkd", taps)
        own = (25.0, 50.0) if check_variant("rkd", variant) else (1.0, 2.0)
        self.distance_weight = at_least(
            "rkd", "distance_weight", own[0] if distance_weight is None else distance_weight, 0.0
        )
        self.angle_weight = at_least("rkd", "angle_weight", own[1] if angle_weight is None else angle_weight, 0.0)
        self.max_nodes = int(at_least("rkd", "max_nodes", max_nodes, 1))

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``rkd_distance`` and ``rkd_angle``."""
        distances, angles = [], []
        for s, t in self.features(student, teacher):
            e_s, e_t = self._embeddings(s, t)
            distances.append(F.smooth_l1_loss(relative_distances(e_s), relative_distances(e_t)))
            angles.append(F.smooth_l1_loss(angle_cosines(e_s), angle_cosines(e_t)))
        return {
            "rkd_distance": self.distance_weight * torch.stack(distances).mean(),
            "rkd_angle": self.angle_weight * torch.stack(angles).mean(),
        }

    def pairwise(self, batch: int) -> int:
        """Angles of both networks with their loss and gradients, differences of features, distances."""
        nodes = max(self.max_nodes, batch)
        return sum(8 * nodes**3 + nodes**2 * (4 * s.channels + 2 * t.channels + 16) for s, t in self.pairs)

    def _embeddings(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """``(nodes, C)`` of both; the same places."""
        size = [min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
        cells = cells_per_axis(size, max(self.max_nodes // len(student), 1))
        s, t = (pool_nodes(f, cells).transpose(1, 2).flatten(0, 1) for f in (student, teacher))
        return s, t


def relative_distances(embeddings: Tensor) -> Tensor:
    """``‖e_i − e_j‖`` over its mean above zero: ``(nodes, C)`` → ``(nodes, nodes)``."""
    products = embeddings @ embeddings.T
    squares = products.diagonal()
    distances = (squares.unsqueeze(0) + squares.unsqueeze(1) - 2 * products).clamp(min=1e-12).sqrt()
    apart = ~torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    distances = distances * apart
    return distances / (distances.sum() / apart.sum().clamp(min=1)).clamp(min=1e-12)


def angle_cosines(embeddings: Tensor) -> Tensor:
    """Cosine of the angle at ``j`` between ``i`` and ``k``: ``(nodes, C)`` → ``(nodes, nodes, nodes)``, ``j`` first."""
    directions = F.normalize(embeddings.unsqueeze(0) - embeddings.unsqueeze(1), dim=2, eps=1e-12)
    return directions @ directions.transpose(1, 2)
