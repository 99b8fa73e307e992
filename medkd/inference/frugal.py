"""The decoder of a planned U-Net with no more feature maps in memory than its next layer needs.

At full resolution a planned U-Net's decoder holds seven maps of the first stage's width at once: the encoder's, the
transposed convolution's, both of them joined, and input, output and normalised output of a convolution. Prediction
needs three and a little work space: what is joined is never formed, what no layer asks for any more is dropped, and
normalising happens in place. The arithmetic is the same.
"""

from __future__ import annotations

from math import prod
from typing import Any, cast

import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU, StackedConvBlocks
from torch import Tensor, nn

from medkd.inference.fast_layers import FastConv3d, GroupedInstanceNorm3d, is_plain_prediction, joined
from medkd.networks.planned import PlannedUNet

_BYTES = 32 * 2**20  # of feature maps that are normalised at a time


class FrugalDecoder(PlannedUNet):
    """A planned U-Net whose decoder drops feature maps as early as it can, where it predicts and nobody looks at them.

    Networks become one by :func:`make_frugal`.
    """

    def _finish(self, start: int, x: Tensor, features: list[Tensor]) -> Tensor:
        if self.remember or not is_plain_prediction(x) or _is_watched(self.net.decoder):
            return super()._finish(start, x, features)
        skips = features[:-1]
        features.clear()  # the caller's list would keep them
        for index in range(start, self.steps):
            finer = self.net.decoder.transpconvs[index](x)
            parts = [finer, skips.pop()]
            del x, finer
            x = _convolved(self.net.decoder.stages[index], parts)
        return self.head(self.steps - 1, x)


def make_frugal(network: nn.Module) -> None:
    """Let a planned U-Net of plain decoder stages be a :class:`FrugalDecoder`; others stay as they are.

    Args:
        network: in evaluation mode; changed in place.
    """
    if not isinstance(network, PlannedUNet) or isinstance(network, FrugalDecoder):
        return
    if not all(map(_is_plain, network.net.decoder.stages)):
        return
    own = type(network)
    network.__class__ = type(own.__name__, (FrugalDecoder, own), {"__doc__": own.__doc__})


def _is_plain(stage: nn.Module) -> bool:
    """Whether a stage is one layer after the other; exact types, since a subclass may compute something else."""
    return type(stage) is StackedConvBlocks and all(type(block) is ConvDropoutNormReLU for block in _blocks(stage))


def _blocks(stage: nn.Module) -> list[Any]:
    """Convolution, normalisation and activation, as often as the stage has them."""
    return list(cast(nn.Sequential, stage.convs))


def _is_watched(decoder: nn.Module) -> bool:
    """Whether somebody looks at what layers of a decoder take and give."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in decoder.modules())


def _convolved(stage: nn.Module, parts: list[Tensor]) -> Tensor:
    """What a stage gives for the joined parts, which are taken out of their list."""
    first, *others = [layer for block in _blocks(stage) for layer in block.all_modules]
    x = first.of_parts(parts) if isinstance(first, FastConv3d) else first(joined(parts))
    for layer in others:
        if isinstance(layer, GroupedInstanceNorm3d):
            _normalise(layer, x)
        else:
            x = layer(x)
    return x


def _normalise(norm: nn.InstanceNorm3d, x: Tensor) -> None:
    """Normalise feature maps ``(B, C, z, y, x)`` in place, some channels at a time."""
    together = max(1, _BYTES // (x.element_size() * prod(x.shape[2:])))
    for sample in x.split(1):
        for first in range(0, x.shape[1], together):
            some = sample[:, first : first + together]
            scale, shift = (None if p is None else p[first : first + together] for p in (norm.weight, norm.bias))
            some.copy_(F.group_norm(some, some.shape[1], scale, shift, norm.eps))
