"""Features with zero mean and unit spread per channel, so that networks of different scale can be compared."""

from __future__ import annotations

import torch
from torch import Tensor


def standardize(features: Tensor, eps: float = 1e-6) -> Tensor:
    """``(F − mean) / (std + eps)`` of ``(B, C, *spatial)`` per channel over batch and space (unbiased)."""
    mean, std = channel_statistics(features)
    return (features - mean) / (std + eps)


SHARE = 0.01  # of a map's mean square that counts as spread at least


def spread(teacher: Tensor, student: Tensor) -> Tensor:
    """By what a squared error between these maps is divided, so that it does not depend on a network's scale: the
    variance of the teacher's map, but at least a hundredth of the mean square of either map.

    So a teacher's map that is constant (or zero) gives an error of at most 400, not one divided by nothing.

    Args:
        teacher: ``(B, C, *spatial)``.
        student: what is compared with it, brought to its shape.

    Returns:
        A scalar without gradient.
    """
    with torch.no_grad():
        least = SHARE * torch.maximum(teacher.square().mean(), student.square().mean())
        return torch.maximum(teacher.var(unbiased=False), least).clamp(min=torch.finfo(teacher.dtype).tiny)


def channel_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation per channel over batch and space, ``(1, C, 1, …)``; a constant channel has
    spread 0.
    """
    axes = (0, *range(2, features.ndim))
    mean = features.mean(axes, keepdim=True)
    number = features.numel() // features.shape[1]
    variance = (features - mean).square().sum(axes, keepdim=True) / max(number - 1, 1)
    positive = variance > 0  # the root of 0 has no gradient
    root = variance.masked_fill(~positive, 1.0).sqrt()
    return mean, root.masked_fill(~positive, 0.0)
