"""The same arithmetic by faster routes: what torch's own choice of kernels leaves on the table on a CPU."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.inference.winograd import WinogradKernel, pays

Network = TypeVar("Network", bound=nn.Module)


class _GroupedInstanceNorm2d(nn.InstanceNorm2d):
    """Instance normalisation as a group normalisation with one channel per group: the same formula, a fifth of the
    time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, y, x)`` of the same shape."""
        return F.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)


class _GroupedInstanceNorm3d(nn.InstanceNorm3d):
    """See :class:`_GroupedInstanceNorm2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, z, y, x)`` of the same shape."""
        return F.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)


class _FastConv3d(nn.Conv3d):
    """A convolution that always runs on oneDNN; torch keeps small single feature maps to a loop that is half as fast,
    on one core. It takes fewer multiplications where that pays.
    """

    _transformed: WinogradKernel | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, z, y, x) → (B, K, z', y', x')``."""
        # outside of a prediction (counting operations, measuring) torch's own operator is what others know
        if not torch.is_inference_mode_enabled() or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if _is_plain(self) and pays(x.shape, self.out_channels):
            return self._winograd()(x)
        padding = [int(side) for side in self.padding]
        return torch.mkldnn_convolution(x, self.weight, self.bias, padding, self.stride, self.dilation, self.groups)

    def _winograd(self) -> WinogradKernel:
        """The transformed kernel, made anew where the weights are others."""
        if self._transformed is None or not self._transformed.is_of(self.weight, self.bias):
            self._transformed = WinogradKernel(self.weight, self.bias)
        return self._transformed


def _is_plain(conv: nn.Conv3d) -> bool:
    """Whether a convolution keeps the size and sees the 26 neighbours of a voxel in all channels."""
    wanted = ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1)
    return (conv.kernel_size, conv.stride, tuple(conv.padding), conv.dilation, conv.groups) == wanted


def tune(network: Network, device: torch.device) -> Network:
    """Let a frozen network take the faster routes where it runs on a CPU; results differ by rounding (1e-6 of a
    normalised value).

    Weights, names and hooks stay as they are. Nothing happens on other devices, or without oneDNN.

    Args:
        network: in evaluation mode and without gradients; changed in place.
        device: where it is going to run.
    """
    if device.type != "cpu":
        return network
    for module in network.modules():
        # exact types: a subclass may compute something else; a module registered under two names is changed once
        if type(module) is nn.InstanceNorm3d and not module.track_running_stats:
            module.__class__ = _GroupedInstanceNorm3d
        elif type(module) is nn.InstanceNorm2d and not module.track_running_stats:
            module.__class__ = _GroupedInstanceNorm2d
        elif type(module) is nn.Conv3d and _runs_on_onednn(module):
            module.__class__ = _FastConv3d
    return network


def _runs_on_onednn(conv: nn.Conv3d) -> bool:
    return torch.backends.mkldnn.is_available() and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
