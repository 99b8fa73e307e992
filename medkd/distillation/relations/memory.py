"""A bounded memory of feature vectors per class, kept over the steps of training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ClassMemory(nn.Module):
    """One ring buffer of unit vectors per class. Buffers, so that a resumed run goes on with the same memory.

    Args:
        classes: number of buffers.
        size: vectors per buffer.
        channels: length of a vector.
    """

    vectors: Tensor
    written: Tensor

    def __init__(self, classes: int, size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(classes, size, channels))
        self.register_buffer("written", torch.zeros(classes, dtype=torch.long))

    @torch.no_grad()
    def push(self, label: int, vectors: Tensor) -> None:
        """Store vectors ``(n, channels)``, ``n`` at most the size, over the oldest ones."""
        size = self.vectors.shape[1]
        start = int(self.written[label])
        places = torch.arange(start, start + len(vectors), device=vectors.device) % size
        self.vectors[label, places] = vectors
        self.written[label] += len(vectors)

    @torch.no_grad()
    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        """Up to ``number`` random vectors of every class, from the filled places only: ``(n, channels)``."""
        chosen = []
        for label, written in enumerate(self.written.tolist()):
            filled = min(written, self.vectors.shape[1])
            places = torch.randperm(filled, generator=generator)[:number].to(self.vectors.device)
            chosen.append(self.vectors[label, places])
        return torch.cat(chosen)
