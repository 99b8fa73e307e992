"""A bounded memory of feature vectors per class, kept over the steps of training.

All classes are written and read together and in fixed numbers, with marks for what does not count, so that a GPU never
has to be asked how many there are.
"""

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
    def push(self, vectors: Tensor, counts: Tensor) -> None:
        """Store vectors of every class over its oldest ones.

        Args:
            vectors: ``(classes, n, channels)``, ``n`` at most the size.
            counts: how many of each class's are stored, the first ones: ``(classes,)``.
        """
        number = torch.arange(vectors.shape[1], device=vectors.device)
        places = (self.written.unsqueeze(1) + number) % self.vectors.shape[1]
        index = places.unsqueeze(2).expand_as(vectors)
        wanted = (number < counts.unsqueeze(1)).unsqueeze(2)
        kept = self.vectors.gather(1, index)
        self.vectors.scatter_(1, index, torch.where(wanted, vectors, kept))
        self.written += counts

    @torch.no_grad()
    def draw(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random vectors of every class.

        Args:
            number: most per class.
            generator: on the memory's device.

        Returns:
            ``(n, channels)``, and which of them are filled places ``(n,)``, bool; of a class as many as it has, at most
            ``number``.
        """
        classes, size, channels = self.vectors.shape
        device = self.vectors.device
        lots = torch.rand(classes, size, generator=generator, device=device)
        empty = torch.arange(size, device=device) >= self.written.unsqueeze(1)
        best = lots.masked_fill_(empty, -1.0).topk(min(number, size), 1)
        index = best.indices.unsqueeze(2).expand(-1, -1, channels)
        return self.vectors.gather(1, index).flatten(0, 1), (best.values >= 0).flatten()
