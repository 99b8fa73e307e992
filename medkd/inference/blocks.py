"""Blocks of a planned network that normalise in place."""

from __future__ import annotations

from math import prod

import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import Tensor, nn

from medkd.inference.fast_layers import GroupedInstanceNorm3d, is_plain_prediction

_BYTES = 32 * 2**20  # of feature maps that are normalised at a time


class InPlaceBlock(ConvDropoutNormReLU):  # type: ignore[misc]
    """Convolution, instance norm and activation, of which the norm writes over the convolution's maps where a network
    predicts and nobody looks at the layers. The arithmetic is the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, …) → (B, K, …)``."""
        if not is_plain_prediction(x) or is_watched(self):
            found: Tensor = super().forward(x)
            return found
        return self.finish(self.all_modules[0](x))

    def finish(self, x: Tensor) -> Tensor:
        """The block's output from its convolution's, which is written over."""
        for layer in self.all_modules[1:]:
            if isinstance(layer, GroupedInstanceNorm3d):
                _normalise(layer, x)
            else:
                x = layer(x)
        return x


def is_watched(part: nn.Module) -> bool:
    """Whether somebody looks at what layers of a part take and give."""
    return any(map(has_hooks, part.modules()))


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks at what a module itself takes and gives."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _normalise(norm: nn.InstanceNorm3d, x: Tensor) -> None:
    """Normalise feature maps ``(B, C, z, y, x)`` in place, some channels at a time."""
    together = max(1, _BYTES // (x.element_size() * prod(x.shape[2:])))
    for sample in x.split(1):
        for first in range(0, x.shape[1], together):
            some = sample[:, first : first + together]
            scale, shift = (None if p is None else p[first : first + together] for p in (norm.weight, norm.bias))
            some.copy_(F.group_norm(some, some.shape[1], scale, shift, norm.eps))
