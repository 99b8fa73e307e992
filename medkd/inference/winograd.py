"""Convolutions with kernels of 3 × 3 × 3 by half as many multiplications, for CPUs whose arithmetic is the limit.

Four neighbouring slices of a convolution's output need twelve products of slices with slices of the kernel. Winograd's
minimal filtering F(4, 3) (Arithmetic Complexity of Computations, 1980; for networks Lavin and Gray, CVPR 2016,
doi:10.1109/CVPR.2016.435) makes them from six: six sums of the input slices are convolved in their planes, each with a
sum of the kernel's slices, and four sums of the results are the output. Two axes at once would save more products and
lose them to moving feature maps, and so would one axis of two: rows of 2D convolutions gained nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

SLICES = 4
"""Of the output that are made together."""

LEAST_CHANNELS = 24
"""With fewer, adding slices takes longer than the products that it saves."""

LEAST_VOXELS = 1000
"""With fewer, laying out the transformed kernel takes longer."""

_POINTS = SLICES + 2
_BYTES = 64 * 2**20  # of sums that are held at a time

# with the points 0, 1, -1, 2, -2 and infinity; the numbers of the paper
_INPUT = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
_KERNEL = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
_OUTPUT = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)
_OF_ALL = 1  # the sum that every slice of the output holds once: the bias joins it


def pays(shape: Sequence[int], outputs: int) -> bool:
    """Whether a feature map ``(B, C, z, y, x)`` with so many channels of output is convolved faster this way.

    >>> pays((1, 32, 40, 56, 40), 32), pays((1, 32, 5, 7, 5), 32), pays((1, 8, 40, 56, 40), 8)
    (True, False, False)
    """
    groups = -(-shape[2] // SLICES)
    saves = 10 * _POINTS * groups <= 7 * 3 * shape[2]
    return saves and min(shape[1], outputs) >= LEAST_CHANNELS and prod(shape[2:]) >= LEAST_VOXELS


class WinogradKernel:
    """The kernel of a convolution, transformed along its first axis.

    Args:
        weight: ``(K, C, 3, 3, 3)``.
        bias: ``(K,)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.outputs, self.inputs = weight.shape[:2]
        self._made_from = tuple(None if part is None else part.detach().clone() for part in (weight, bias))
        transform = torch.tensor(_KERNEL, dtype=torch.float64)
        made = torch.einsum("pa,kcayx->pkcyx", transform, weight.detach().double()).float()
        self.weight = made.reshape(_POINTS * self.outputs, self.inputs, 1, 3, 3).contiguous()
        self.bias = torch.zeros(_POINTS, self.outputs)
        if bias is not None:
            self.bias[_OF_ALL] = bias.detach()
        self.bias = self.bias.flatten()
        self._forth = torch.tensor(_INPUT).expand(self.inputs, -1, -1)
        self._back = torch.tensor(_OUTPUT).expand(self.outputs, -1, -1)

    def is_of(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether it was made from these values; they are compared, since no counter notes every change of a tensor."""
        for now, then in zip((weight, bias), self._made_from, strict=True):
            if (now is None) != (then is None):
                return False
            if now is not None and then is not None and not torch.equal(now, then):
                return False
        return True

    def __call__(self, *parts: Tensor) -> Tensor:
        """``(B, C, z, y, x) → (B, K, z, y, x)`` float32, zeros around the input.

        Args:
            parts: the input; several are taken as one whose channels follow each other, which is never formed.
        """
        batch, _, depth, *plane = parts[0].shape
        maps = [part.contiguous().view(batch, part.shape[1], depth, -1) for part in parts]
        result = parts[0].new_empty(batch, self.outputs, depth, maps[0].shape[-1])
        groups = -(-depth // SLICES)
        held = max(1, _BYTES // (4 * _POINTS * max(self.inputs, self.outputs) * result.shape[-1]))
        for *sources, target in zip(*maps, result, strict=True):
            for first in range(0, groups, held):
                self._groups(sources, target, range(first, min(first + held, groups)), plane)
        return result.view(batch, self.outputs, depth, *plane)

    def _groups(self, sources: Sequence[Tensor], target: Tensor, groups: range, plane: Sequence[int]) -> None:
        """Convolve some groups of slices: ``(C, z, voxels)``, in parts, into ``(K, z, voxels)``."""
        sums = target.new_empty(_POINTS, self.inputs, len(groups), target.shape[-1])
        first = 0
        for source in sources:
            own = slice(first, first + len(source))
            first = own.stop
            for place, group in enumerate(groups):
                window = _window(source, SLICES * group - 1)
                torch.bmm(self._forth[own], window, out=sums[:, own, place].transpose(0, 1))
        image = sums.view(1, _POINTS * self.inputs, len(groups), *plane)
        found = torch.mkldnn_convolution(image, self.weight, self.bias, [0, 1, 1], [1] * 3, [1] * 3, _POINTS)
        products = found.view(_POINTS, self.outputs, len(groups), -1)
        for place, group in enumerate(groups):
            rows = target[:, SLICES * group : SLICES * (group + 1)]
            torch.bmm(self._back[:, : rows.shape[1]], products[:, :, place].transpose(0, 1), out=rows)


def _window(source: Tensor, first: int) -> Tensor:
    """Six slices of ``(C, z, voxels)`` from ``first`` on, zeros where there are none."""
    last = first + _POINTS
    if first >= 0 and last <= source.shape[1]:
        return source[:, first:last]
    window = source.new_zeros(source.shape[0], _POINTS, source.shape[2])
    there = source[:, max(0, first) : last]
    start = max(0, -first)
    window[:, start : start + there.shape[1]] = there
    return window
