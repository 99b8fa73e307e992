"""FourierKD's loss on the head: the student's scores learn the teacher's, as far as both find the same boxes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Target
from medkd.detection.base import DetectionTarget, DetectorOutputs
from medkd.detection.methods.registry import DETECTION_METHODS
from medkd.detection.tv.losses import paired_overlap
from medkd.distillation.base import Context, Method
from medkd.distillation.options import positive

_ALPHA, _GAMMA = 0.75, 2.0  # of the varifocal loss


@DETECTION_METHODS.register("iou_aware")
class IouAware(Method):
    """IoU-aware distillation between heads of one kind.

    With the student's and the teacher's boxes ``b`` and logits ``z`` of an anchor, and ``P`` the anchors that the
    student's assignment gave to a box::

        q = IoU(b_S, b_T) σ(z_T)  at anchors in P, 0 elsewhere
        L = w Σ m BCE(z_S, q) · ( q  where q > 0,  ¾ |σ(z_S) − q|²  elsewhere ) / max(P, 1)

    ``m`` leaves out the anchors that the assignment leaves out. Boxes and teacher have no gradient. Of two-stage
    detectors the proposals' anchors are compared, with their one score.

    Citation: FourierKD, IEEE Signal Processing Letters 2024, 10.1109/LSP.2024.3515795; the form is the varifocal loss
    of Zhang, Wang, Dayoub, Sünderhauf, CVPR 2021, arXiv 2008.13367.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``.
    """

    citation = "FourierKD; IEEE SPL 2024; 10.1109/LSP.2024.3515795"
    detection = True
    outputs_only = True

    def __init__(self, context: Context, weight: float = 1.5) -> None:
        super().__init__(context)
        self.weight = positive("iou_aware", "weight", weight)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``iou_aware``."""
        logits, boxes = _scored(student)
        others, theirs = _scored(teacher)
        chosen, counted = _assigned(target)
        with torch.no_grad():
            overlap = paired_overlap(boxes.flatten(0, 1), theirs.flatten(0, 1)).view(boxes.shape[:2])
            quality = torch.sigmoid(others) * (overlap * chosen)[:, None]
        away = (torch.sigmoid(logits) - quality).abs() ** _GAMMA
        emphasis = torch.where(quality > 0, quality, _ALPHA * away)
        loss = F.binary_cross_entropy_with_logits(logits, quality, reduction="none") * emphasis * counted[:, None]
        return {"iou_aware": self.weight * loss.sum() / chosen.sum().clamp(min=1)}


def _scored(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Logits ``(B, K, A)`` and boxes ``(B, A, 4)`` of a dense head, or of a two-stage detector's proposals."""
    if not isinstance(outputs, DetectorOutputs) or outputs.boxes is None:
        raise MethodError("iou_aware compares boxes anchor by anchor, which these detectors do not give; use kd.")
    return outputs.logits if outputs.objectness is None else outputs.objectness, outputs.boxes


def _assigned(target: Target) -> tuple[Tensor, Tensor]:
    """Which anchors have a box, and which count at all, ``(B, A)``, as numbers."""
    if isinstance(target, DetectionTarget) and target.objects is not None:
        labels = target.objects[:, 0]
        return (labels > 0).float(), (labels >= 0).float()
    labels = target.labels[:, 0]
    return (labels >= 0).float(), (labels != -2).float()
