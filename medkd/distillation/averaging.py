"""The mean of several predictions: of probabilities, as nobody is sure who is right, and back to logits, which methods
compare.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import torch
from torch import Tensor

SMALLEST = 1e-7  # probabilities are clipped here before their logarithm is taken


def probabilities_of(logits: Tensor, regions: bool) -> Tensor:
    """Softmax over channels, or sigmoid of each, of ``(B, K, *spatial)``, in float32."""
    logits = logits.float()
    return logits.sigmoid() if regions else logits.softmax(1)


def mean_of(every: Iterable[Tensor]) -> Tensor:
    """The mean of tensors of one shape, kept in one of them; there must be at least one."""
    parts = iter(every)
    total = next(parts).clone()
    count = 1
    for part in parts:
        total += part
        count += 1
    return total / count


def logits_of(probabilities: Tensor, regions: bool) -> Tensor:
    """Logits whose softmax (or sigmoid) gives back the probabilities: ``log p``, or ``log (p / (1 − p))``.

    Probabilities beyond 1e-7 and 1 − 1e-7 are clipped.
    """
    if regions:
        return torch.logit(probabilities, SMALLEST)
    return probabilities.clamp(min=SMALLEST).log()


def mirrorings(axes: Iterable[int]) -> list[tuple[int, ...]]:
    """All combinations of the mirrored axes of a patch, the plain one first, as dimensions of ``(B, C, *patch)``."""
    dimensions = [axis + 2 for axis in axes]
    found: list[tuple[int, ...]] = []
    for number in range(len(dimensions) + 1):
        found += combinations(dimensions, number)
    return found
