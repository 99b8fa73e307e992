"""Loss formulas of dense heads that torchvision does not have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TINY = 1e-7


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal loss ``|σ(z) − y|^β · BCE(σ(z), y)`` with soft targets ``y`` in [0, 1], summed.

    Li et al., "Generalized focal loss", NeurIPS 2020, arXiv 2006.04388.

    Args:
        logits: any shape.
        quality: ``y``, of the same shape: at a positive anchor's class the overlap of its box with the truth, zero
            elsewhere.
        beta: how much easy examples count less.
    """
    away = (logits.sigmoid() - quality).abs() ** beta
    return (away * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")).sum()


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the two bins around a continuous target: ``−(⌈y⌉ − y) log p_⌊y⌋ − (y − ⌊y⌋) log p_⌊y⌋+1``.

    Li et al., "Generalized focal loss", NeurIPS 2020, arXiv 2006.04388.

    Args:
        logits: ``(..., bins)``.
        target: ``(...)``, from 0 to below ``bins − 1``.

    Returns:
        The loss of each target, ``(...)``.
    """
    below = target.floor().long()
    share = target - below
    log_p = logits.log_softmax(-1)
    left = log_p.gather(-1, below[..., None]).squeeze(-1)
    right = log_p.gather(-1, below[..., None] + 1).squeeze(-1)
    return -(1 - share) * left - share * right


def expectation(logits: Tensor) -> Tensor:
    """Mean ``Σ_i i · p_i`` of distributions over 0 … bins − 1, ``(..., bins)`` → ``(...)``."""
    bins = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    return (logits.softmax(-1) * bins).sum(-1)


def centreness(sides: Tensor) -> Tensor:
    """``√(min(l, r)/max(l, r) · min(t, b)/max(t, b))`` of positive distances ``(..., 4)`` to left, top, right, bottom.

    Tian et al., "FCOS", ICCV 2019, arXiv 1904.01355.
    """
    across, down = sides[..., 0::2], sides[..., 1::2]
    return (across.amin(-1) / across.amax(-1) * (down.amin(-1) / down.amax(-1))).sqrt()


def overlap_loss(first: Tensor, second: Tensor) -> Tensor:
    """``1 −`` the generalised intersection over union of boxes ``(..., 4)`` and ``(..., 4)``, ``(...)``.

    Equals ``torchvision.ops.generalized_box_iou_loss``, which selects by masks and so makes a GPU's host wait.

    Rezatofighi et al., "Generalized intersection over union", CVPR 2019, arXiv 1902.09630.
    """
    corners = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    meet = (corners > 0).all(-1)
    shared = torch.where(meet, corners[..., 0] * corners[..., 1], 0.0)
    union = _area(first) + _area(second) - shared
    hull = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    outer = hull[..., 0] * hull[..., 1]
    return 1 - (shared / (union + _TINY) - (outer - union) / (outer + _TINY))


def paired_overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of box ``i`` of ``first`` and box ``i`` of ``second``, ``(n, 4)`` each → ``(n,)``."""
    corners = torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])
    shared = corners.clamp(min=0).prod(-1)
    return shared / ((first[:, 2:] - first[:, :2]).prod(-1) + (second[:, 2:] - second[:, :2]).prod(-1) - shared).clamp(
        min=1e-9
    )


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
