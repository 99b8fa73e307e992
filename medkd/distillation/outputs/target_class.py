"""Splitting a prediction into the true class and the rest, for methods that teach the two apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.errors import MethodError
from medkd.distillation.base import Context


def require_classes(method: str, context: Context) -> None:
    """Refuse regions.

    Raises:
        MethodError: the outputs are regions, which may overlap, so that a voxel has no single true class.
    """
    if context.regions:
        raise MethodError(
            f"{method} teaches the true class and the others apart; regions may overlap and have no single true class: "
            "use kd."
        )


def others(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities among the classes that are not the true one; 0 in the place of the true class.

    Args:
        logits: ``(B, K, *spatial)``.
        labels: true class ``(B, 1, *spatial)``, int64.
    """
    true = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels, True)
    return F.log_softmax(logits.masked_fill(true, -torch.inf), 1).masked_fill(true, 0.0)


def others_probability(logs: Tensor, labels: Tensor) -> Tensor:
    """Probabilities of :func:`others`, 0 in the place of the true class."""
    return logs.exp().scatter(1, labels, 0.0)
