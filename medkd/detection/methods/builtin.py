"""The distillation that ultralytics brings along, as a baseline."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Target
from medkd.detection.methods.registry import DETECTION_METHODS
from medkd.distillation.base import Context, Method
from medkd.distillation.options import positive


@DETECTION_METHODS.register("ultralytics")
class Ultralytics(Method):
    """Names ultralytics' own distillation, which its trainer does; both networks must be ultralytics' and have equally
    many levels.

    Per level a trainable projector ``A`` (1x1 convolution, ReLU, 1x1 convolution) and, with ``s`` the teacher's highest
    class probability in a cell::

        L = w · Σ_l Σ s (A_l S_l − T_l)² / (C Σ s)

    Citation: ultralytics 8.4, ``distill_model`` and ``dis``, github.com/ultralytics/ultralytics.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``, ultralytics' ``dis``.

    Attributes:
        builtin: the trainer of the family does it; this class computes nothing.
    """

    citation = "ultralytics 8.4, distill_model; github.com/ultralytics/ultralytics"
    detection = True
    builtin: ClassVar[bool] = True

    def __init__(self, context: Context, weight: float = 6.0) -> None:
        super().__init__(context)
        self.weight = positive("ultralytics", "weight", weight)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Nothing of its own.

        Raises:
            MethodError: always.
        """
        raise MethodError(
            "'ultralytics' is done by ultralytics' own trainer; use it alone and between two ultralytics detectors."
        )
