"""Per-voxel divergences between predicted distributions, shared by the methods that compare logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``Σ_c p_T log(p_T / p_S)`` per voxel, ``p = softmax(z / τ)`` over channels.

    Args:
        student: logits ``(B, K, *spatial)``.
        teacher: logits of the same shape, without gradient.
        temperature: ``τ``.

    Returns:
        ``(B, 1, *spatial)``, non-negative up to rounding.
    """
    log_s = F.log_softmax(student / temperature, 1)
    log_t = F.log_softmax(teacher / temperature, 1)
    return (log_t.exp() * (log_t - log_s)).sum(1, keepdim=True)


def binary_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence between the Bernoulli distributions of every channel, ``p = sigmoid(z / τ)``.

    Computed as cross-entropy minus the teacher's entropy, both from logits, so that saturated probabilities stay exact.

    Returns:
        ``(B, K, *spatial)``.
    """
    s, t = student / temperature, teacher / temperature
    p = torch.sigmoid(t)
    cross = F.binary_cross_entropy_with_logits(s, p, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(t, p, reduction="none")


def voxel_kl(student: Tensor, teacher: Tensor, regions: bool, temperature: float = 1.0) -> Tensor:
    """Divergence per voxel ``(B, 1, *spatial)``: :func:`softmax_kl`, or :func:`binary_kl` summed over regions."""
    if regions:
        return binary_kl(student, teacher, temperature).sum(1, keepdim=True)
    return softmax_kl(student, teacher, temperature)
