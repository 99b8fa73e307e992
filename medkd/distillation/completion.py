"""What a method learns from where there are no labels, or where the teacher is not sure."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medkd.core.features import Target
from medkd.distillation.averaging import probabilities_of


def completed(target: Target, logits: Tensor, regions: bool, confidence: float = 0.0) -> Target:
    """The target as methods see it.

    Samples without labels get the teacher's prediction in their place: the most probable class, or the regions with a
    probability above 0.5. Voxels of which the teacher is not sure enough count as not annotated.

    Args:
        target: of the batch.
        logits: the teacher's, ``(B, K, *spatial)``.
        regions: sigmoid regions instead of softmax classes.
        confidence: least probability of the teacher's likeliest class, of regions that of the answer (inside or
            outside) of which it is least sure; 0 keeps every voxel.
    """
    if target.labelled is not None:
        predicted = (logits > 0).to(target.labels.dtype) if regions else logits.argmax(1, keepdim=True)
        own = target.labelled.to(target.labels.device, non_blocking=True).view(-1, *(1,) * (target.labels.ndim - 1))
        valid = None if target.valid is None else target.valid | ~own
        target = replace(target, labels=torch.where(own, target.labels, predicted), valid=valid, labelled=None)
    if confidence > 0:
        sure = certainty(logits, regions) >= confidence
        target = replace(target, valid=sure if target.valid is None else target.valid & sure)
    return target


def certainty(logits: Tensor, regions: bool) -> Tensor:
    """Probability ``(B, 1, *spatial)`` of the likeliest class; of regions that of the least certain answer."""
    probabilities = probabilities_of(logits, regions)
    if not regions:
        return probabilities.amax(1, keepdim=True)
    return torch.maximum(probabilities, 1 - probabilities).amin(1, keepdim=True)
