"""Decoupled distillation of a detector's class scores."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.detection.methods.registry import DETECTION_METHODS
from medkd.distillation.base import Context, Method, masked_mean
from medkd.distillation.options import at_least, positive
from medkd.distillation.outputs.divergence import voxel_kl
from medkd.distillation.outputs.dkd import decoupled

_FEWEST = 3  # classes, for "the others" to be more than one
log = logging.getLogger(__name__)


@DETECTION_METHODS.register("dkd")
class DetectorDKD(Method):
    """Decoupled knowledge distillation between detectors, with the authors' settings for detection (``α = 1, β = ¼, τ =
    1``).

    With ``b = (p[y], 1 − p[y])`` for the true class ``y`` and ``q`` the softmax over the other classes, both at
    temperature ``τ``::

        L = w τ² · mean ( α KL(b_T ‖ b_S) + β KL(q_T ‖ q_S) )

    Two-stage detectors: the mean is over the student's proposals, ``p`` the softmax over background and classes; with
    one class of objects the second part is zero. Dense heads score every class apart: ``p`` is the softmax of their
    logits over the classes, the mean is over the anchors that the student's assignment gave to a box, and the other
    anchors learn nothing. With fewer than three classes that says next to nothing, so that a dense head with one or two
    classes gets the binary divergences of ``kd`` instead, as the single term ``dkd``, and the log says so.

    Citation: B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang, CVPR 2022, arXiv 2203.08679.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``.
        alpha: ``α``.
        beta: ``β``.
        temperature: ``τ``.

    Raises:
        MethodError: a parameter is out of its range.
    """

    citation = "Zhao, Cui, Song, Qiu, Liang; CVPR 2022; arXiv 2203.08679"
    detection = True
    outputs_only = True

    def __init__(
        self, context: Context, weight: float = 1.0, alpha: float = 1.0, beta: float = 0.25, temperature: float = 1.0
    ) -> None:
        super().__init__(context)
        self.weight = positive("dkd", "weight", weight)
        self.alpha = at_least("dkd", "alpha", alpha, 0.0)
        self.beta = at_least("dkd", "beta", beta, 0.0)
        self.temperature = positive("dkd", "temperature", temperature)
        self.binary = context.regions and context.num_outputs < _FEWEST
        if self.binary:
            log.warning("dkd needs three classes in a dense head and finds %d: it is kd here.", context.num_outputs)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Terms ``dkd_target`` and ``dkd_others``, or ``dkd`` where it is ``kd``."""
        scale = self.weight * self.temperature**2
        if self.binary:
            divergence = voxel_kl(student.logits, teacher.logits, True, self.temperature)
            return {"dkd": scale * masked_mean(divergence, target.valid)}
        taught = target.labels >= 0 if self.context.regions else torch.ones_like(target.labels, dtype=torch.bool)
        parts = decoupled(
            student.logits / self.temperature, teacher.logits / self.temperature, target.labels.clamp(min=0)
        )
        sure, rest = (masked_mean(part, taught) for part in parts)
        return {"dkd_target": scale * self.alpha * sure, "dkd_others": scale * self.beta * rest}
