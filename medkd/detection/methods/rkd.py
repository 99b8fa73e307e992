"""Relational distillation among the true boxes, and among the images, of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.detection.methods.registry import DETECTION_METHODS
from medkd.distillation.base import Context, Variant, zero_like
from medkd.distillation.options import at_least
from medkd.distillation.pairs import PairMethod
from medkd.distillation.relations.rkd import angle_cosines, relative_distances

_STRIDES = (8, 32)  # of the maps whose embeddings are compared, where there are such maps
_CELLS, _SAMPLES = 7, 2  # RoIAlign's usual grid


@DETECTION_METHODS.register("rkd")
class DetectorRKD(PairMethod):
    """Relational knowledge distillation between detectors.

    The paper relates whole images; a detector's batch holds few, so the embeddings ``e`` are the true boxes of all
    images (the neck map under the box by RoIAlign, averaged; of more than ``max_nodes`` boxes an even selection), and
    apart from them the images (the map's average). With ``ψ_D = ‖e_i − e_j‖`` over its mean, and ``ψ_A`` the cosine of
    the angle at ``j`` in every triple::

        L = mean over levels and the two kinds of ( w_D · mean huber(ψ_D^S, ψ_D^T) + w_A · mean huber(ψ_A^S, ψ_A^T) )

    with the Huber loss of threshold 1; fewer than two embeddings have no distances and fewer than three no angles, and
    count as 0. Levels are those of strides 8 to 32, or all where there is none of them. Channels need not match.
    ``variant="paper"`` takes the paper's weights, 25 and 50.

    Citation: W. Park, D. Kim, Y. Lu, M. Cho, CVPR 2019, arXiv 1904.05068.

    Args:
        context: taps, outputs and geometry.
        distance_weight: ``w_D``; None means the variant's own.
        angle_weight: ``w_A``; None means the variant's own.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`.
        max_nodes: most boxes in a batch; the angles take ``max_nodes³`` numbers.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the necks share no stride, or a parameter is out of its range.
    """

    citation = "Park, Kim, Lu, Cho; CVPR 2019; arXiv 1904.05068"
    detection = True

    def __init__(
        self,
        context: Context,
        distance_weight: float | None = None,
        angle_weight: float | None = None,
        taps: str = "all",
        max_nodes: int = 64,
        variant: Variant = "default",
    ) -> None:
        super().__init__(context, "rkd", taps)
        if ":" not in taps:
            middle = [pair for pair in self.pairs if _STRIDES[0] <= pair[0].stride[0] <= _STRIDES[1]]
            self.pairs = middle or self.pairs
        own = (25.0, 50.0) if variant == "paper" else (1.0, 2.0)
        self.distance_weight = at_least(
            "rkd", "distance_weight", own[0] if distance_weight is None else distance_weight, 0.0
        )
        self.angle_weight = at_least("rkd", "angle_weight", own[1] if angle_weight is None else angle_weight, 0.0)
        self.max_nodes = int(at_least("rkd", "max_nodes", max_nodes, 1))

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``rkd_distance`` and ``rkd_angle``."""
        boxes = even_selection(getattr(target, "boxes", ()), self.max_nodes)
        distances, angles = [], []
        for (s_tap, t_tap), (s, t) in zip(self.pairs, self.features(student, teacher), strict=True):
            of_boxes = box_embeddings(s, boxes, s_tap.stride[0]), box_embeddings(t, boxes, t_tap.stride[0])
            for e_s, e_t in (of_boxes, (s.mean((2, 3)), t.mean((2, 3)))):
                distances.append(
                    _huber(relative_distances(e_s), relative_distances(e_t)) if len(e_s) > 1 else zero_like(s)
                )
                angles.append(_huber(angle_cosines(e_s), angle_cosines(e_t)) if len(e_s) > 2 else zero_like(s))
        return {
            "rkd_distance": self.distance_weight * torch.stack(distances).mean(),
            "rkd_angle": self.angle_weight * torch.stack(angles).mean(),
        }


def even_selection(boxes: Sequence[Tensor], most: int) -> Tensor:
    """At most so many boxes of a batch, evenly spread over it.

    Args:
        boxes: per image ``(n, 4)``.
        most: their number.

    Returns:
        ``(n, 5)``: place of the image in the batch, and the box.
    """
    rows = [torch.cat((b.new_full((len(b), 1), float(index)), b), 1) for index, b in enumerate(boxes)]
    every = torch.cat(rows).float() if rows else torch.zeros(0, 5)
    if len(every) <= most:
        return every
    return every[torch.linspace(0, len(every) - 1, most, device=every.device).round().long()]


def box_embeddings(features: Tensor, boxes: Tensor, stride: int) -> Tensor:
    """The mean of a map ``(B, C, rows, columns)`` under each of the boxes of :func:`even_selection`: ``(n, C)``."""
    from torchvision.ops import roi_align

    pooled: Tensor = roi_align(features, boxes.to(features), _CELLS, 1.0 / stride, _SAMPLES, aligned=True)
    return pooled.mean((2, 3))


def _huber(student: Tensor, teacher: Tensor) -> Tensor:
    return F.smooth_l1_loss(student, teacher)
