"""Attention transfer: the student has its energy where the teacher has."""

from __future__ import annotations

from math import prod

from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Variant
from medkd.distillation.features.attention_map import attention_distance, energy, resize_nearest
from medkd.distillation.options import positive
from medkd.distillation.pairs import PairMethod


@METHODS.register("at")
class AttentionTransfer(PairMethod):
    """Attention transfer over all stages.

    ``q(F)`` is the channel mean of squares, scaled to unit norm over the voxels::

        L = w / levels · Σ_l mean_n ‖ q(S_l) − q(T_l) ‖²

    Teacher maps of another size are resized by nearest neighbour. The logits count as one more level.
    ``variant="paper"`` takes the *mean* over voxels with weight 200 per level, as released for 3D, which fades with the
    patch: at most 0.0036 per level at 48³.

    Why ``w = 0.25``: the sum of a level lies in [0, 2] for any patch, so no size can make it loud or silent. With this
    weight its gradient has the norm of the supervised loss's on synthetic organs
    (``benchmarks/results/distillation_40x56x40.json``: 0.52 beside 0.47), and 0.17 (first epoch) to 0.03 (last) of it
    on MR hippocampi. The released 200, summed over levels, would pull thousands of times as hard on the sum over
    voxels, and on the mean over 96³ voxels more than a hundred times less. Nothing was tuned on validation cases.

    Citation: S. Zagoruyko, N. Komodakis, ICLR 2017, arXiv 1612.03928.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``; None means the variant's own.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`.
        logits: whether the logits are a level too.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "Zagoruyko, Komodakis; ICLR 2017; arXiv 1612.03928"
    by_sample = True
    per_logit, per_feature = 2.5, 2.0
    bound = "one energy map per level"

    def __init__(
        self,
        context: Context,
        weight: float | None = None,
        taps: str = "all",
        logits: bool = True,
        variant: Variant = "default",
    ) -> None:
        super().__init__(context, "at", taps)
        self.paper = variant == "paper"
        own = 200.0 if self.paper else 0.25
        self.weight = positive("at", "weight", own if weight is None else weight)
        self.logits = logits

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``at``."""
        pairs = list(self.features(student, teacher))
        if self.logits:
            pairs.append((student.logits, teacher.logits))
        return {"at": self.weight * self.joined([self._level(s, t) for s, t in pairs])}

    def _level(self, student: Tensor, teacher: Tensor) -> Tensor:
        size = student.shape[2:]
        distance = attention_distance(energy(student), resize_nearest(energy(teacher), size))
        return distance / prod(size) if self.paper else distance
