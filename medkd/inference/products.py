"""Convolutions that are matrix products and nothing else: of one voxel, and transposed ones whose windows do not meet.

oneDNN lays their inputs and outputs out anew, which takes longer than the products and holds both layouts at once: a
head of 61 outputs for 96 × 160 × 160 voxels held 900 MiB besides its input and its output.
"""

from __future__ import annotations

from itertools import product
from math import prod

import torch
from torch import Tensor, nn

LEAST_VOXELS = 4000
"""With fewer, the products of a transposed convolution are small ones and take longer than laying out."""


def is_of_one_voxel(conv: nn.Conv2d | nn.Conv3d) -> bool:
    """Whether each output depends on the channels of its own voxel and of no other."""
    ones = (1,) * len(conv.kernel_size)
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.groups)
    return shape in ((ones, ones, padding, 1) for padding in ((0,) * len(ones), "same", "valid"))


def of_one_voxel(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``(B, C, z, y, x) → (B, K, z, y, x)``.

    Args:
        x: feature maps.
        weight: ``(K, C, 1, 1, 1)``.
        bias: ``(K,)``.
    """
    return _product(weight.flatten(1), x, bias)


def is_apart(conv: nn.ConvTranspose3d) -> bool:
    """Whether each output of a transposed convolution comes from one voxel of the input."""
    shape = (conv.stride, conv.padding, conv.output_padding, conv.dilation, conv.groups)
    return shape == (conv.kernel_size, (0, 0, 0), (0, 0, 0), (1, 1, 1), 1)


def transposed_pays(x: Tensor) -> bool:
    """Whether :func:`transposed` is faster than oneDNN."""
    return prod(x.shape[2:]) >= LEAST_VOXELS


def transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``(B, C, z, y, x) → (B, K, z · sz, y · sy, x · sx)``, by one product for each place of a window.

    Args:
        x: feature maps.
        weight: ``(C, K, sz, sy, sx)``.
        bias: ``(K,)``.
    """
    steps = weight.shape[2:]
    finer = [size * step for size, step in zip(x.shape[2:], steps, strict=True)]
    result = x.new_empty(len(x), weight.shape[1], *finer)
    for z, y, w in product(*map(range, steps)):
        places = result[:, :, z :: steps[0], y :: steps[1], w :: steps[2]]
        places.copy_(_product(weight[:, :, z, y, w].T, x, bias))
    return result


def _product(matrix: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """``(K, C)`` times the channels of ``(B, C, z, y, x)``."""
    rows, columns = matrix.expand(len(x), -1, -1), x.flatten(2)
    found = torch.bmm(rows, columns) if bias is None else torch.baddbmm(bias.view(1, -1, 1), rows, columns)
    return found.unflatten(2, x.shape[2:])
