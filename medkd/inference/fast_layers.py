"""Layers that give what torch's own give, faster on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.inference.products import is_apart, is_of_one_voxel, of_one_voxel, transposed, transposed_pays
from medkd.inference.winograd import WinogradKernel, pays

_FEW_INPUTS = 4
_LANES = 16  # channels that the widest vector instructions compute together
_LARGE_BYTES = 128 * 2**20


class GroupedInstanceNorm2d(nn.InstanceNorm2d):
    """Instance normalisation as a group normalisation with one channel per group: the same formula, a fifth of the
    time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, y, x)`` of the same shape."""
        return F.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)


class GroupedInstanceNorm3d(nn.InstanceNorm3d):
    """See :class:`GroupedInstanceNorm2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, z, y, x)`` of the same shape."""
        return F.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)


class FastConv3d(nn.Conv3d):
    """A convolution that always runs on oneDNN; torch keeps small single feature maps to a loop that is half as fast,
    on one core. It takes fewer multiplications where that pays, and one matrix product where it is one.
    """

    _transformed: WinogradKernel | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, z, y, x) → (B, K, z', y', x')``."""
        # outside of a prediction (counting operations, measuring) torch's own operator is what others know
        if not is_plain_prediction(x):
            return super().forward(x)
        if is_of_one_voxel(self):
            return of_one_voxel(x, self.weight, self.bias)
        if _is_plain(self) and pays(x.shape, self.out_channels):
            return self._winograd()(x)
        return self._on_onednn(x)

    def of_parts(self, parts: list[Tensor]) -> Tensor:
        """The convolution of feature maps joined along their channels, which are not joined where that can be spared.

        Args:
            parts: taken out of the list, so that nothing here keeps them.
        """
        shape = (len(parts[0]), self.in_channels, *parts[0].shape[2:])
        if is_plain_prediction(parts[0]) and _is_plain(self) and pays(shape, self.out_channels):
            found = self._winograd()(*parts)
            parts.clear()
            return found
        return self(joined(parts))

    def _on_onednn(self, x: Tensor) -> Tensor:
        """By oneDNN, which holds what it makes in two layouts at once; large maps are made a few channels at a time
        where their input is so small that laying it out again costs nothing.
        """
        padding = [int(side) for side in self.padding]
        voxels = len(x) * prod(x.shape[2:]) // prod(self.stride)
        large = 4 * self.out_channels * voxels > _LARGE_BYTES and self.in_channels <= _FEW_INPUTS
        if not large or self.groups > 1:
            return torch.mkldnn_convolution(x, self.weight, self.bias, padding, self.stride, self.dilation, self.groups)
        bias = self.weight.new_zeros(self.out_channels) if self.bias is None else self.bias
        pieces = zip(self.weight.split(_LANES), bias.split(_LANES), strict=True)
        maps = (torch.mkldnn_convolution(x, *piece, padding, self.stride, self.dilation, 1) for piece in pieces)
        return filled(maps, self.out_channels)

    def _winograd(self) -> WinogradKernel:
        """The transformed kernel, made anew where the weights are others."""
        if self._transformed is None or not self._transformed.is_of(self.weight, self.bias):
            self._transformed = WinogradKernel(self.weight, self.bias)
        return self._transformed


class FastConvTranspose3d(nn.ConvTranspose3d):
    """A transposed convolution that is a few matrix products where its windows do not meet and the maps are large."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(B, C, z, y, x) → (B, K, z', y', x')``."""
        if output_size is None and is_plain_prediction(input) and is_apart(self) and transposed_pays(input):
            return transposed(input, self.weight, self.bias)
        return super().forward(input, output_size)


def filled(pieces: Iterator[Tensor], channels: int) -> Tensor:
    """Feature maps ``(B, channels, z, y, x)`` of pieces with some channels each, of which one is held at a time."""
    piece = next(pieces)
    result = piece.new_empty(len(piece), channels, *piece.shape[2:])
    result[:, : piece.shape[1]] = piece
    first = piece.shape[1]
    for piece in pieces:
        result[:, first : first + piece.shape[1]] = piece
        first += piece.shape[1]
    return result


def joined(parts: list[Tensor]) -> Tensor:
    """Feature maps joined along their channels; taken out of the list, so that nothing here keeps them."""
    whole = torch.cat(parts, 1)
    parts.clear()
    return whole


def is_plain_prediction(x: Tensor) -> bool:
    """Whether a network predicts in fp32, so that its arithmetic may go other ways."""
    return torch.is_inference_mode_enabled() and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _is_plain(conv: nn.Conv3d) -> bool:
    """Whether a convolution keeps the size and sees the 26 neighbours of a voxel in all channels."""
    wanted = ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1)
    return (conv.kernel_size, conv.stride, tuple(conv.padding), conv.dilation, conv.groups) == wanted
