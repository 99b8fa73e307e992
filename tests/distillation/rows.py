"""Annotated voxels as plain lists, for references written as loops over voxels."""

from __future__ import annotations

from math import exp

import torch

from medkd.core.features import Target


def softmax(row: list[float]) -> list[float]:
    """Plain softmax."""
    powers = [exp(r - max(row)) for r in row]
    return [p / sum(powers) for p in powers]


def sigmoid_or_softmax(row: list[float], regions: bool) -> list[float]:
    """Probabilities of one voxel."""
    return [1 / (1 + exp(-x)) for x in row] if regions else softmax(row)


def tiny(classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, Target]:
    """Logits, labels, and voxels without annotation."""
    labels, valid = torch.randint(0, classes, (2, 1, 3, 4)), torch.rand(2, 1, 3, 4) > 0.3
    return torch.randn(2, classes, 3, 4), torch.randn(2, classes, 3, 4), Target(labels, valid)


def rows(s: torch.Tensor, t: torch.Tensor, target: Target) -> list[tuple[list[float], list[float], int]]:
    """Student logits, teacher logits and true class of the annotated voxels."""
    assert target.valid is not None
    keep = target.valid[:, 0]
    a, b = (z.movedim(1, -1)[keep].tolist() for z in (s, t))
    return list(zip(a, b, target.labels[:, 0][keep].tolist(), strict=True))


def without(row: list[float], true: int) -> list[float]:
    """The row without the true class."""
    return row[:true] + row[true + 1 :]
