"""Relational knowledge distillation: distances and angles among places instead of the features themselves."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Variant, zero_like
from medkd.distillation.options import at_least
from medkd.distillation.pairs import PairMethod
from medkd.distillation.relations.nodes import common_size, pool_alike

log = logging.getLogger(__name__)
FEWEST = 3  # places


@METHODS.register("rkd")
class RKD(PairMethod):
    """Relational knowledge distillation.

    The paper relates whole images of a batch; a segmentation batch holds two or three, so here the embeddings ``e`` are
    the cells of a grid over the feature map (average-pooled, all samples together, at most ``max_nodes``). With ``ψ_D =
    ‖e_i − e_j‖`` divided by its mean over all pairs, and ``ψ_A`` the cosine of the angle at ``j`` in every triple::

        L = w_D · mean huber(ψ_D^S, ψ_D^T) + w_A · mean huber(ψ_A^S, ψ_A^T)

    with the Huber loss of threshold 1. Channels need not match. The angles take ``max_nodes³`` numbers, and the
    distances are norms of differences, which keep their digits on nearly constant maps. Two places have one distance
    and no angle, so that both terms would be constants: a level with fewer than three is left out, which a warning
    says. ``variant="paper"`` takes the paper's weights, 25 and 50.

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
        variant: Variant = "default",
    ) -> None:
        super().__init__(context, "rkd", taps)
        own = (25.0, 50.0) if variant == "paper" else (1.0, 2.0)
        distance = own[0] if distance_weight is None else distance_weight
        angle = own[1] if angle_weight is None else angle_weight
        self.distance_weight = at_least("rkd", "distance_weight", distance, 0.0)
        self.angle_weight = at_least("rkd", "angle_weight", angle, 0.0)
        self.max_nodes = int(at_least("rkd", "max_nodes", max_nodes, FEWEST))

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``rkd_distance`` and ``rkd_angle``."""
        distances, angles = [], []
        for s, t in self.features(student, teacher):
            e_s, e_t = self._embeddings(s, t)
            if len(e_s) < FEWEST:
                self._too_few(s, t)
                distances.append(zero_like(s))
                angles.append(zero_like(s))
                continue
            distances.append(F.smooth_l1_loss(relative_distances(e_s), relative_distances(e_t)))
            angles.append(F.smooth_l1_loss(angle_cosines(e_s), angle_cosines(e_t)))
        return {
            "rkd_distance": self.distance_weight * torch.stack(distances).mean(),
            "rkd_angle": self.angle_weight * torch.stack(angles).mean(),
        }

    def pairwise(self, batch: int) -> int:
        """Angles of both networks with their loss and gradients, differences of features, distances."""
        nodes = max(self.max_nodes, batch)
        total = 0
        for student, teacher in self.pairs:
            differences = 5 * student.channels + 2 * teacher.channels + 16
            total += 8 * nodes**3 + differences * nodes**2
        return total

    def _embeddings(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """``(nodes, C)`` of both; the same places."""
        batch = len(student)
        nodes = pool_alike(student, teacher, max(self.max_nodes // batch, 1))
        s, t = (n.transpose(1, 2).flatten(0, 1) for n in nodes)
        return s, t

    def _too_few(self, student: Tensor, teacher: Tensor) -> None:
        """Say once that a level teaches nothing."""
        if not self._said:
            self._said = True
            log.warning(
                "rkd leaves out a level: it relates at least %d places, and a batch of %d with maps of %s has fewer; "
                "its terms would be constants; name finer maps by rkd.taps, or take a larger batch.",
                FEWEST,
                len(student),
                common_size(student, teacher),
            )

    _said = False


def relative_distances(embeddings: Tensor) -> Tensor:
    """``‖e_i − e_j‖`` over its mean above zero: ``(nodes, C)`` → ``(nodes, nodes)``.

    Norms of differences: taken from products, ``‖a‖² + ‖b‖² − 2 a·b``, the distances between nearly equal embeddings
    are lost in rounding.
    """
    squares = (embeddings.unsqueeze(0) - embeddings.unsqueeze(1)).square().sum(2)
    number = len(embeddings)
    apart = 1 - torch.eye(number, dtype=squares.dtype, device=squares.device)
    distances = squares.clamp(min=1e-24).sqrt() * apart
    mean = distances.sum() / max(number * (number - 1), 1)
    return distances / mean.clamp(min=1e-12)


def angle_cosines(embeddings: Tensor) -> Tensor:
    """Cosine of the angle at ``j`` between ``i`` and ``k``: ``(nodes, C)`` → ``(nodes, nodes, nodes)``, ``j`` first."""
    directions = F.normalize(embeddings.unsqueeze(0) - embeddings.unsqueeze(1), dim=2, eps=1e-12)
    return directions @ directions.transpose(1, 2)
