"""The orthonormal Haar wavelet transform of feature maps, in any number of dimensions, as sums over neighbouring
cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_ROOT = 2**-0.5


def scales_of(size: Sequence[int], most: int) -> int:
    """How often a map of this size can be halved, at least once and at most ``most`` times: ``2^scales`` fits its
    shortest axis.
    """
    return max(1, min(most, min(size).bit_length() - 1))


def haar(features: Tensor, scales: int) -> tuple[Tensor, list[Tensor]]:
    """Split maps into a low band and high bands.

    At every scale each axis of even length (an odd one gets a zero at its end) is split into sums ``(a + b) / √2`` and
    differences ``(a − b) / √2`` of neighbours; the band of sums along all axes is split again.

    Args:
        features: ``(B, C, *spatial)``.
        scales: how often, at least once.

    Returns:
        The low band ``(B, C, *spatial/2^scales)``, and per scale, finest first, the others: ``(B, C, 2^rank − 1,
        *spatial/2^scale)``.

    References:
        S. Mallat, A theory for multiresolution signal decomposition, IEEE TPAMI 11(7), 1989, DOI 10.1109/34.192463.
    """
    highs = []
    for _ in range(scales):
        bands = [features]
        for axis in range(2, features.ndim):
            halves: list[Tensor] = []
            for band in bands:
                halves += _split(band, axis)
            bands = halves
        features = bands[0]
        highs.append(torch.stack(bands[1:], 2))
    return features, highs


def inverse_haar(low: Tensor, highs: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The maps whose transform this is.

    Args:
        low: the low band.
        highs: the others, finest first.
        size: spatial size of the maps.
    """
    sizes = [tuple(size)]
    for _ in highs[1:]:
        sizes.append(tuple(-(-n // 2) for n in sizes[-1]))
    for high, whole in zip(reversed(highs), reversed(sizes), strict=True):
        bands = [low, *high.unbind(2)]
        for axis in reversed(range(2, low.ndim)):
            joined = []
            for total, difference in zip(bands[::2], bands[1::2], strict=True):
                joined.append(_join(total, difference, axis, whole[axis - 2]))
            bands = joined
        low = bands[0]
    return low


def _split(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    if x.shape[axis] % 2:
        x = F.pad(x, [*(0, 0) * (x.ndim - 1 - axis), 0, 1])
    first, second = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
    return (first + second) * _ROOT, (first - second) * _ROOT


def _join(total: Tensor, difference: Tensor, axis: int, length: int) -> Tensor:
    first = (total + difference) * _ROOT
    second = (total - difference) * _ROOT
    pair = torch.stack((first, second), axis + 1)
    return pair.flatten(axis, axis + 1).narrow(axis, 0, length)
