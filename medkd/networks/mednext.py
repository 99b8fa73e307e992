"""MedNeXt in its four sizes: a U-Net of ConvNeXt blocks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from medkd.core.features import Tap
from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder

WIDTH = 32
# expansion ratios of the encoder's stages and of the bottleneck
EXPANSION = {"b": (2, 3, 4, 4, 4), "m": (2, 3, 4, 4, 4), "l": (3, 4, 8, 8, 8)}
PAPER = "paper"


class MedNext(EncoderDecoder):
    """MONAI's ``MedNeXt`` with kernel 3, total stride 16; the letter of the name is the size.

    MONAI's down-sampling blocks expand with the ratio of the stage that they leave, the authors' with that of the stage
    that they enter: ``mednext_b_paper``, ``mednext_m_paper`` and ``mednext_l_paper`` do, too, so that the authors'
    weights fit; in ``mednext_s`` all ratios are equal.

    Roy, Köhler, Ulrich, Baumgartner, Petersen, Isensee, Jäger, Maier-Hein: MedNeXt: transformer-driven scaling of
    ConvNets for medical image segmentation. MICCAI 2023, arXiv 2303.09975.
    """

    citation = "Roy et al., MICCAI 2023, arXiv 2303.09975"

    def __init__(self, spec: NetworkSpec) -> None:
        from monai.networks.nets.mednext import create_mednext

        super().__init__(spec)
        _, size, *variant = spec.name.split("_")
        self.net = create_mednext(
            size, self.rank, spec.in_channels, spec.num_outputs, deep_supervision=spec.deep_supervision
        )
        if variant == [PAPER]:
            self._expand_as_the_authors(EXPANSION[size])
        self.steps = len(self.net.dec_stages)
        encoder = []
        decoder = []
        for level in range(self.steps):
            encoder.append(self._level(f"enc{level}", level, f"enc_stages.{level}"))
        bottleneck = self._level("bottleneck", self.steps, "bottleneck")
        for index in range(self.steps):
            level = self.steps - 1 - index
            decoder.append(self._level(f"dec{level}", level, f"dec_stages.{index}"))
        self.set_taps(encoder, bottleneck, decoder)
        self.deep_supervision = spec.deep_supervision
        if spec.deep_supervision:
            self.deep_supervision_strides = tuple((2**level,) * self.rank for level in range(self.steps))
            del self.net.out_blocks[0]  # logits of the bottleneck, before any decoder step

    def _expand_as_the_authors(self, ratios: tuple[int, ...]) -> None:
        """Down-sampling blocks with the ratio of the stage that they enter."""
        from monai.networks.blocks.mednext_block import MedNeXtDownBlock

        for level, ratio in enumerate(ratios[1:]):
            width = WIDTH * 2**level
            self.net.down_blocks[level] = MedNeXtDownBlock(
                width,
                2 * width,
                expansion_ratio=ratio,
                kernel_size=3,
                use_residual_connection=True,
                dim=f"{self.rank}d",
            )

    def _level(self, name: str, level: int, stage: str) -> Tap:
        """A tap on the last block of a stage of stride ``2**level``."""
        blocks: Any = self.net.get_submodule(stage)
        last = f"net.{stage}.{len(blocks) - 1}"
        return self.tap(name, WIDTH * 2**level, 2**level, last, correction=True)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Outputs of all encoder stages and of the bottleneck, finest first."""
        x = self.net.stem(x)
        features = []
        for stage, down in zip(self.net.enc_stages, self.net.down_blocks, strict=True):
            features.append(stage(x))
            x = down(features[-1])
        return [*features, self.net.bottleneck(x)]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Double the resolution, add the skip, blocks."""
        finer = self.net.up_blocks[index](x)
        return self.net.dec_stages[index](finer + self.skip(index, features))

    def head(self, index: int, x: Tensor) -> Tensor:
        """The 1 × 1 convolution of a decoder stage."""
        if index == self.steps - 1:
            return self.net.out_0(x)
        return self.net.out_blocks[index](x)


_ENTRY = NetworkEntry(build=MedNext, citation=MedNext.citation, divisor=16, deep_supervision=True)
for _size in ("s", "b", "m", "l"):
    NETWORKS.register(f"mednext_{_size}")(_ENTRY)
for _size in EXPANSION:
    NETWORKS.register(f"mednext_{_size}_{PAPER}")(_ENTRY)
