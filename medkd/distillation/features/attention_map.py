"""Spatial attention maps: where a feature map has its energy (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def energy(features: Tensor) -> Tensor:
    """``mean_c F²`` per voxel: ``(B, C, *spatial)`` → ``(B, *spatial)``."""
    return features.square().mean(1)


def resize_nearest(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize ``(B, *spatial)`` to ``(B, *size)`` by nearest neighbour; unchanged where the size fits."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return F.interpolate(maps.unsqueeze(1), size=tuple(size), mode="nearest").squeeze(1)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of two energy maps, each scaled to unit Euclidean norm over its voxels; mean over the batch.

    ``mean_n ‖ q_S − q_T ‖²``, ``q = E / max(‖E‖₂, 1e-12)``; a sum over voxels, so it lies in ``[0, 2]`` for any patch
    size (energies are not negative).

    Args:
        student: energies ``(B, *spatial)``.
        teacher: energies of the same shape, without gradient.
    """
    q_s = F.normalize(student.flatten(1), dim=1, eps=1e-12)
    q_t = F.normalize(teacher.flatten(1), dim=1, eps=1e-12)
    return (q_s - q_t).square().sum(1).mean()
