"""Mean features of classes, shared by the methods that compare voxels or classes with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Target
from medkd.distillation.boundaries.boundary import classes_of, one_hot


def class_masks(target: Target, channels: int, regions: bool, size: Sequence[int], *, outside: bool = False) -> Tensor:
    """Membership of every voxel in every class, at a feature map's size (nearest neighbour).

    Args:
        target: labels and mask of annotated voxels; what is not annotated belongs to no class.
        channels: classes ``K``, or regions.
        regions: whether labels are multi-hot.
        size: spatial size of the result.
        outside: for regions, add one last channel for voxels that are in none.

    Returns:
        ``(B, K, *size)`` or with ``outside`` ``(B, K + 1, *size)``, float32, 0 or 1.
    """
    labels = nearest(target.labels, size)
    masks = labels > 0.5 if regions else one_hot(labels, classes_of(labels, channels))
    if outside and regions:
        masks = torch.cat((masks, ~masks.any(1, keepdim=True)), 1)
    if target.valid is not None:
        masks = masks & (nearest(target.valid, size) > 0.5)
    return masks.float()


def nearest(values: Tensor, size: Sequence[int]) -> Tensor:
    """Resize ``(B, K, *spatial)`` by nearest neighbour, as float32 where the size changes."""
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return F.interpolate(values.float(), size=tuple(size), mode="nearest")


def masked_means(features: Tensor, masks: Tensor) -> Tensor:
    """Mean feature of each mask: ``(B, C, *spatial)`` and ``(B, K, *spatial)`` → ``(B, K, C)``, zero for an empty
    mask.
    """
    flat = masks.flatten(2)
    return torch.einsum("bkv,bcv->bkc", flat, features.flatten(2)) / flat.sum(2, keepdim=True).clamp(min=1.0)


def similarity_to_means(features: Tensor, masks: Tensor) -> Tensor:
    """Cosine between every voxel's feature and the mean feature of each mask of its sample: ``(B, K, V)``."""
    flat = F.normalize(features.flatten(2), dim=1, eps=1e-8)
    means = F.normalize(masked_means(features, masks), dim=2, eps=1e-8)
    return torch.einsum("bkc,bcv->bkv", means, flat)
