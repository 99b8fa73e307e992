"""The decoder of a planned U-Net with no more feature maps in memory than its next layer needs.

At full resolution a planned U-Net's decoder holds seven maps of the first stage's width at once: the encoder's, the
transposed convolution's, both of them joined, and input, output and normalised output of a convolution. Prediction
needs three and a little work space: what is joined is never formed, what no layer asks for any more is dropped, and
normalising happens in place. The arithmetic is the same.
"""

from __future__ import annotations

from typing import Any, cast

from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from torch import Tensor, nn

from medkd.inference.blocks import InPlaceBlock, is_watched
from medkd.inference.fast_layers import FastConv3d, is_plain_prediction, joined
from medkd.networks.planned import PlannedUNet


class FrugalDecoder(PlannedUNet):
    """A planned U-Net whose decoder drops feature maps as early as it can, where it predicts and nobody looks at them.

    Networks become one by :func:`make_frugal`.
    """

    def _finish(self, start: int, x: Tensor, features: list[Tensor]) -> Tensor:
        if self.remember or not is_plain_prediction(x) or is_watched(self.net.decoder):
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
        network: in evaluation mode, with blocks that normalise in place; changed in place.
    """
    if not isinstance(network, PlannedUNet) or isinstance(network, FrugalDecoder):
        return
    if not all(map(_is_plain, network.net.decoder.stages)):
        return
    own = type(network)
    network.__class__ = type(own.__name__, (FrugalDecoder, own), {"__doc__": own.__doc__})


def _is_plain(stage: nn.Module) -> bool:
    """Whether a stage is one layer after the other; exact types, since a subclass may compute something else."""
    return type(stage) is StackedConvBlocks and all(type(block) is InPlaceBlock for block in _blocks(stage))


def _blocks(stage: nn.Module) -> list[Any]:
    """Convolution, normalisation and activation, as often as the stage has them."""
    return list(cast(nn.Sequential, stage.convs))


def _convolved(stage: nn.Module, parts: list[Tensor]) -> Tensor:
    """What a stage gives for the joined parts, which are taken out of their list."""
    first, *others = _blocks(stage)
    conv = first.all_modules[0]
    x: Tensor = first.finish(conv.of_parts(parts) if isinstance(conv, FastConv3d) else conv(joined(parts)))
    for block in others:
        x = block(x)
    return x
