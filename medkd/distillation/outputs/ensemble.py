"""Distillation of what a teacher knows with test-time augmentation, into a student that does without."""

from __future__ import annotations

from torch import Tensor

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Progress, Target
from medkd.distillation.base import METHODS, Context, Method, masked_mean
from medkd.distillation.options import positive
from medkd.distillation.outputs.divergence import voxel_kl


@METHODS.register("ensemble")
class Ensemble(Method):
    """The student imitates the mean of the teacher's predictions over its mirrorings, and over its folds where they may
    teach.

    With ``M`` mirrorings ``f`` (undone on the prediction) of each of ``F`` networks::

        q = 1 / (F M) Σ softmax(T(f x)),    L = w τ² · mean over annotated voxels of KL(q ‖ p_S)

    where both sides are softened, ``p = softmax(z / τ)`` with ``z_q = log q``; sigmoids for regions. Folds besides the
    student's own take part only where none of them has seen a case that the student is judged on: in practice for a
    student of fold ``all``, which is judged on a test set.

    With live targets a mean costs ``F M`` forwards of the teacher, so that only a share of the steps, evenly spread,
    has it; at the others the target is the teacher's plain prediction, with the same weight, for it is an estimate of
    the same thing. A step costs ``1 + share · (F M − 1)`` forwards on average. With cached targets every step has the
    mean, at no cost.

    Citation: G. Hinton, O. Vinyals, J. Dean, NIPS Deep Learning Workshop 2014, arXiv 1503.02531, section 3 (ensembles
    as teachers); mean
    over transformed inputs: I. Radosavovic et al., Data Distillation, CVPR 2018, arXiv 1712.04440.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``; see ``kd`` for its scale.
        temperature: ``τ``.
        share: of the steps with live targets that have the mean, above 0 and at most 1.
    """

    citation = "Hinton, Vinyals, Dean; NIPS-W 2014; arXiv 1503.02531; Radosavovic et al.; CVPR 2018; arXiv 1712.04440"
    outputs_only = True
    averages = True
    by_sample = True
    per_logit, per_feature = 6.0, 0.0
    bound = "a few copies of the logits; the mean is summed up pass by pass"

    def __init__(self, context: Context, weight: float = 0.25, temperature: float = 1.0, share: float = 0.25) -> None:
        super().__init__(context)
        self.weight = positive("ensemble", "weight", weight)
        self.temperature = positive("ensemble", "temperature", temperature)
        self.share = positive("ensemble", "share", share)
        if self.share > 1:
            raise MethodError(f"ensemble.share must be above 0 and at most 1 (a share of the steps), found {share!r}.")

    def wants_average(self, progress: Progress) -> bool:
        """A share of the steps, evenly spread and a function of the step alone."""
        return int((progress.step + 1) * self.share + 1e-9) > int(progress.step * self.share + 1e-9)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``ensemble``."""
        goal = teacher.logits if teacher.average is None else teacher.average
        divergence = voxel_kl(student.logits, goal, self.context.regions, self.temperature)
        return {"ensemble": self.weight * self.temperature**2 * masked_mean(divergence, target.valid)}
