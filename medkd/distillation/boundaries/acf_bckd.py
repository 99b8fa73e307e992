"""ACF-BCKD: attention-corrected features and boundary constraints together."""

from __future__ import annotations

from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Method, Needs, Variant
from medkd.distillation.boundaries.acf import ACF
from medkd.distillation.boundaries.bckd import BCKD, Distances


@METHODS.register("acf_bckd")
class ACFBCKD(Method):
    """``L = L_acf + α L_hard + (1 − α) L_soft``: see :class:`medkd.distillation.boundaries.acf.ACF` and
    :class:`medkd.distillation.boundaries.bckd.BCKD`.

    Citation: X. Yu, L. Teng, D. Zhang, J. Zheng, H. Chen, "Attention correction feature and boundary constraint
    knowledge distillation for efficient 3D medical image segmentation", Expert Systems with Applications 262:125670,
    2025.

    Args:
        context: taps, outputs and geometry.
        feature_weight: weight of the feature terms; None means the variant's own.
        hard_weight: weight of the hard boundary term; None means the variant's own.
        soft_weight: weight of the soft boundary term.
        student_tap: see ACF.
        teacher_tap: see ACF.
        legacy_alias: see ACF.
        floor: see BCKD.
        decay: see BCKD.
        distances: see BCKD.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: no tap of the teacher has a block correction, or a parameter is out of its range.
    """

    citation = "Yu, Teng, Zhang, Zheng, Chen; Expert Systems with Applications 262:125670, 2025"
    per_logit, per_feature = 10.0, 2.5
    bound = "as acf and bckd; no matrix of pairs of voxels"

    def __init__(
        self,
        context: Context,
        feature_weight: float | None = None,
        hard_weight: float | None = None,
        soft_weight: float = 1.0,
        student_tap: str | None = None,
        teacher_tap: str | None = None,
        legacy_alias: bool = False,
        floor: float | None = None,
        decay: float | None = None,
        distances: Distances | None = None,
        variant: Variant = "default",
    ) -> None:
        super().__init__(context)
        self.acf = ACF(
            context,
            weight=feature_weight,
            student_tap=student_tap,
            teacher_tap=teacher_tap,
            legacy_alias=legacy_alias,
            variant=variant,
        )
        self.bckd = BCKD(
            context,
            hard_weight=hard_weight,
            soft_weight=soft_weight,
            floor=floor,
            decay=decay,
            distances=distances,
            variant=variant,
        )

    def needs(self) -> Needs:
        """What the feature half needs."""
        return self.acf.needs()

    def announced(self, logits: int, features: int, batch: int) -> int:
        """The sum of both halves."""
        return self.acf.announced(logits, features, batch) + self.bckd.announced(logits, features, batch)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``acf_feature``, ``acf_correction``, ``hard_boundary`` and ``soft_boundary``."""
        return {**self.acf(student, teacher, target), **self.bckd(student, teacher, target)}
