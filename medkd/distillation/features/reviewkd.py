"""Knowledge review: deep student features join shallower ones before they are compared with the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Variant
from medkd.distillation.features.standardize import spread
from medkd.distillation.options import at_least, positive
from medkd.distillation.pairs import PairMethod, resize
from medkd.distillation.relations.nodes import pool_nodes


class Fusion(nn.Module):
    """Attention-based fusion of one level with the level below it.

    ``x = norm(conv1(S))``; with a deeper ``y`` (brought to its size): ``(g₁, g₂) = sigmoid(conv1([x, y]))``, ``x ← g₁ x
    + g₂ y``; the output for the teacher is ``norm(conv3(x))``.

    Args:
        rank: spatial dimensions.
        channels: student's, in between, teacher's.
        deeper: whether there is a deeper level.
        batch_norm: batch normalisation instead of one over the whole sample, which does not depend on the batch.
    """

    def __init__(self, rank: int, channels: tuple[int, int, int], deeper: bool, batch_norm: bool) -> None:
        super().__init__()
        conv = nn.Conv3d if rank == 3 else nn.Conv2d
        student, middle, teacher = channels
        self.enter = nn.Sequential(conv(student, middle, 1, bias=False), _norm(rank, middle, batch_norm))
        self.gates = conv(2 * middle, 2, 1) if deeper else None
        self.leave = nn.Sequential(conv(middle, teacher, 3, padding=1, bias=False), _norm(rank, teacher, batch_norm))
        for layer in (self.enter[0], self.leave[0]):
            nn.init.kaiming_uniform_(layer.weight, a=1)  # type: ignore[arg-type]

    def forward(self, features: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is compared with the teacher, and what is passed on to the next finer level."""
        x = self.enter(features)
        if self.gates is not None and deeper is not None:
            y = F.interpolate(deeper, size=x.shape[2:], mode="nearest")
            one, two = torch.sigmoid(self.gates(torch.cat((x, y), 1))).split(1, 1)
            x = one * x + two * y
        return self.leave(x), x


def _norm(rank: int, channels: int, batch: bool) -> nn.Module:
    if batch:
        return (nn.BatchNorm3d if rank == 3 else nn.BatchNorm2d)(channels)
    return nn.GroupNorm(1, channels)


@METHODS.register("reviewkd")
class ReviewKD(PairMethod):
    """Distilling knowledge via knowledge review.

    From the deepest pair to the finest, a trainable fusion (:class:`Fusion`) joins a student level with the levels
    below it; its output ``o_l`` and the teacher's feature are compared by the hierarchical context loss: mean squared
    error at full size and after adaptive average pooling to 4, 2 and 1 cells per axis, weighted ``1, ½, ¼, ⅛`` and
    divided by their sum; a pooled level counts, and halves the weight, only where the map is larger than that::

        L = w · mean_l HCL(o_l, T_l) / var(T_l)

    Dividing by the teacher feature's variance makes the scale independent of the network (for a nearly constant map it
    is held up, see :func:`medkd.distillation.features.standardize.spread`). ``variant="paper"`` sums over levels
    without it, and normalises over the batch instead of the sample. With ``w = 1`` the term's gradient begins as strong
    as that of Dice and cross-entropy; 0.25 leaves the labels in the lead.

    Citation: P. Chen, S. Liu, H. Zhao, J. Jia, CVPR 2021, arXiv 2104.09044.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``; None means 0.25, in the paper variant 1.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`.
        width: channels between student and teacher; they are held at full size of every level, so this bounds the
            memory.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "Chen, Liu, Zhao, Jia; CVPR 2021; arXiv 2104.09044"
    per_logit, per_feature = 0.0, 6.0
    bound = "a few copies of the features"

    def __init__(
        self,
        context: Context,
        weight: float | None = None,
        taps: str = "deep",
        width: int = 32,
        variant: Variant = "default",
    ) -> None:
        super().__init__(context, "reviewkd", taps)
        self.paper = variant == "paper"
        own = 1.0 if self.paper else 0.25
        self.weight = positive("reviewkd", "weight", own if weight is None else weight)
        width = int(at_least("reviewkd", "width", width, 1))
        deepest = len(self.pairs) - 1
        self.fusions = nn.ModuleList(
            Fusion(context.rank, (s.channels, width, t.channels), level < deepest, self.paper)
            for level, (s, t) in enumerate(self.pairs)
        )

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``reviewkd``."""
        passed, levels = None, []
        for fusion, (s, t) in reversed(list(zip(self.fusions, self.features(student, teacher), strict=True))):
            output, passed = fusion(s, passed)
            output = resize(output, t.shape[2:])
            loss = hierarchical_loss(output, t)
            levels.append(loss if self.paper else loss / spread(t, output))
        return {"reviewkd": self.weight * self.joined(levels)}


def hierarchical_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared errors at full size and pooled to 4, 2 and 1 cells per axis, where the maps are larger than that.

    Every level that counts has half the weight of the one before it; one that is left out halves nothing.
    """
    total, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for cells in (4, 2, 1):
        if min(student.shape[2:]) <= cells:
            continue
        weight /= 2
        grid = (cells,) * (student.ndim - 2)
        total = total + weight * F.mse_loss(pool_nodes(student, grid), pool_nodes(teacher, grid))
        weights += weight
    return total / weights
