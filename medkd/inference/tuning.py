"""The same arithmetic by faster routes: what torch's own choice of kernels leaves on the table on a CPU."""

from __future__ import annotations

from typing import TypeVar

import torch
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import nn

from medkd.inference.blocks import InPlaceBlock
from medkd.inference.fast_layers import (
    FastConv3d,
    FastConvTranspose3d,
    GroupedInstanceNorm2d,
    GroupedInstanceNorm3d,
)
from medkd.inference.frugal import make_frugal

# Exact types: a subclass may compute something else
_FASTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.InstanceNorm2d: GroupedInstanceNorm2d,
    nn.InstanceNorm3d: GroupedInstanceNorm3d,
    nn.Conv3d: FastConv3d,
    nn.ConvTranspose3d: FastConvTranspose3d,
    ConvDropoutNormReLU: InPlaceBlock,
}

Network = TypeVar("Network", bound=nn.Module)


def tune(network: Network, device: torch.device) -> Network:
    """Let a frozen network take the faster routes where it runs on a CPU, and hold no more feature maps than it needs;
    results differ by rounding (1e-6 of a normalised value).

    Weights, names and hooks stay as they are. Nothing happens on other devices, or without oneDNN.

    Args:
        network: in evaluation mode and without gradients; changed in place.
        device: where it is going to run.
    """
    if device.type != "cpu":
        return network
    for module in network.modules():  # one that is registered under two names is changed once
        faster = _FASTER.get(type(module))
        if faster is not None and _may_change(module):
            module.__class__ = faster
    make_frugal(network)
    return network


def _may_change(module: nn.Module) -> bool:
    """Whether a layer is one that its faster form computes."""
    if isinstance(module, (nn.InstanceNorm2d, nn.InstanceNorm3d)):
        return not module.track_running_stats
    if isinstance(module, nn.Conv3d):
        return (
            torch.backends.mkldnn.is_available()
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        )
    return True
