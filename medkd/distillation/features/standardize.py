"""Features with zero mean and unit spread per channel, so that networks of different scale can be compared."""

from __future__ import annotations

import torch
from torch import Tensor


def standardize(features: Tensor, eps: float = 1e-6) -> Tensor:
    """``(F − mean) / (std + eps)`` of ``(B, C, *spatial)`` per channel over batch and space (unbiased)."""
    mean, std = channel_statistics(features)
    return (features - mean) / (std + eps)


def channel_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation per channel over batch and space, ``(1, C, 1, …)``; a constant channel has
    spread 0.
    """
    axes = (0, *range(2, features.ndim))
    mean = features.mean(axes, keepdim=True)
    number = features.numel() // features.shape[1]
    variance = (features - mean).square().sum(axes, keepdim=True) / max(number - 1, 1)
    positive = variance > 0  # the root of 0 has no gradient
    return mean, torch.where(
        positive, torch.where(positive, variance, torch.ones_like(variance)).sqrt(), torch.zeros_like(variance)
    )
