"""Attention U-Net: a U-Net whose skip features pass an attention gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder

# the paper's 3D network has a quarter of the classical U-Net's channels
WIDTHS = {2: (64, 128, 256, 512, 1024), 3: (16, 32, 64, 128, 256)}


class AttentionUNet(EncoderDecoder):
    """MONAI's ``AttentionUnet``, total stride 16; ``net`` nests a gated layer around everything below it.

    Oktay, Schlemper, Le Folgoc, Lee, Heinrich, Misawa, Mori, McDonagh, Hammerla, Kainz, Glocker, Rueckert: Attention
    U-Net: learning where to look for the pancreas. MIDL 2018, arXiv 1804.03999.
    """

    citation = "Oktay et al., MIDL 2018, arXiv 1804.03999"

    def __init__(self, spec: NetworkSpec) -> None:
        from monai.networks.nets import AttentionUnet

        super().__init__(spec)
        widths = WIDTHS[self.rank]
        self.steps = len(widths) - 1
        self.net = AttentionUnet(self.rank, spec.in_channels, spec.num_outputs, widths, (2,) * self.steps)
        self.head_path = "net.model.2.conv"
        *blocks, deepest = (self._block_path(level) for level in range(self.steps + 1))
        merges = [f"{self._layer_path(level)}.merge" for level in range(self.steps)]
        self.set_taps(
            self.encoder_taps(widths, blocks),
            self.tap("bottleneck", widths[-1], 2**self.steps, deepest),
            self.decoder_taps(widths[-2::-1], merges[::-1]),
        )

    def _layer_path(self, level: int) -> str:
        """Path of the gated layer whose skip has stride ``2**level``."""
        return "net.model.1" + ".submodule.1" * level

    def _block_path(self, level: int) -> str:
        """Path of the encoder block whose output has stride ``2**level``; the deepest one is the bottleneck."""
        if level == 0:
            return "net.model.0"
        below = f"{self._layer_path(level - 1)}.submodule"
        return f"{below}.0" if level < self.steps else below

    def encode(self, x: Tensor) -> list[Tensor]:
        """Outputs of all encoder blocks, finest first."""
        features = []
        for level in range(self.steps + 1):
            x = self.get_submodule(self._block_path(level))(x)
            features.append(x)
        return features

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Transposed convolution, gate on the skip, join and merge."""
        layer: Any = self.get_submodule(self._layer_path(self.steps - 1 - index))
        up = layer.upconv(x)
        gated = layer.attention(g=up, x=self.skip(index, features))
        return layer.merge(torch.cat((gated, up), 1))

    def head(self, index: int, x: Tensor) -> Tensor:
        """1 × 1 convolution."""
        return self.net.model[2](x)


NETWORKS.register("attention_unet")(NetworkEntry(build=AttentionUNet, citation=AttentionUNet.citation, divisor=16))
