"""TransUNet: a ResNet-50 and a vision transformer as encoder of a cascaded up-sampler, 2D."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medkd.core.errors import RunError
from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder, numbered
from medkd.networks.fcn import timm_model

TOKEN = 768
HIDDEN = 512
SKIP_WIDTHS = (64, 256, 512)
DECODER_WIDTHS = (256, 128, 64, 16)


def layer(inputs: int, outputs: int) -> list[nn.Module]:
    """Convolution, batch norm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class Up(nn.Module):
    """Bilinear doubling, skip joined, two convolutions."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*layer(inputs + skip, outputs), *layer(outputs, outputs))

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """``(B, inputs, H, W)`` and the skip ``(B, skip, 2H, 2W)`` or None → ``(B, outputs, 2H, 2W)``."""
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        if skip is not None:
            x = torch.cat((x, skip), 1)
        return self.convs(x)


def decoder_steps() -> nn.ModuleList:
    """The four up-sampling steps; the last one has no skip."""
    steps = nn.ModuleList()
    inputs = HIDDEN
    for skip, outputs in zip((*SKIP_WIDTHS[::-1], 0), DECODER_WIDTHS, strict=True):
        steps.append(Up(inputs, skip, outputs))
        inputs = outputs
    return steps


class TransUNet(EncoderDecoder):
    """R50-ViT-B/16 (timm's hybrid without class token) and four up-sampling steps with three skips, total stride 16.

    Chen, Lu, Yu, Luo, Adeli, Wang, Lu, Yuille, Zhou: TransUNet: transformers make strong encoders for medical image
    segmentation. 2021, arXiv 2102.04306. The positional embedding is made for the training patch, so inputs of another
    size are refused.

    Raises:
        RunError: timm is missing, or (in ``forward``) the input has another size than the training patch.
    """

    citation = "Chen et al., 2021, arXiv 2102.04306"

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        self.net = timm_model(
            spec.name,
            "vit_base_r50_s16_224",
            img_size=spec.patch_size,
            in_chans=spec.in_channels,
            class_token=False,
        )
        self.reduce = nn.Sequential(*layer(TOKEN, HIDDEN))
        self.decoder = decoder_steps()
        self.classify = nn.Conv2d(DECODER_WIDTHS[-1], spec.num_outputs, 3, padding=1)
        self.steps = len(DECODER_WIDTHS)
        stem = "net.patch_embed.backbone"
        encoder = (
            self.tap("enc0", 64, 2, f"{stem}.stem.norm"),
            self.tap("enc1", 256, 4, f"{stem}.stages.0.blocks.2", correction=True),
            self.tap("enc2", 512, 8, f"{stem}.stages.1.blocks.3", correction=True),
            self.tap("enc3", 1024, 16, f"{stem}.stages.2.blocks.8", correction=True),
        )
        bottleneck = self.tap("bottleneck", HIDDEN, 16, "reduce")
        decoder = self.decoder_taps(DECODER_WIDTHS, numbered("decoder", self.steps))
        self.set_taps(encoder, bottleneck, decoder)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Convolutional features of strides 2, 4 and 8, and the transformer's at stride 16 as a map of 512 channels."""
        check_size(x, self.spec)
        embed = self.net.patch_embed
        backbone = embed.backbone
        features = [backbone.stem.norm(backbone.stem.conv(x))]
        x = backbone.stem.pool(features[0])
        for stage in backbone.stages:
            x = stage(x)
            features.append(x)
        tokens = embed.proj(x).flatten(2).transpose(1, 2) + self.net.pos_embed
        tokens = self.net.norm(self.net.blocks(tokens)).transpose(1, 2)
        return [*features[:-1], self.reduce(tokens.unflatten(2, x.shape[2:]))]

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """One up-sampling step; the last one has no skip."""
        skip = self.skip(index, features) if index < self.steps - 1 else None
        return self.decoder[index](x, skip)

    def head(self, index: int, x: Tensor) -> Tensor:
        """Convolution to logits."""
        return self.classify(x)


def check_size(x: Tensor, spec: NetworkSpec) -> None:
    """Refuse an input of another size than the training patch."""
    size = tuple(x.shape[2:])
    if size != spec.patch_size:
        raise RunError(f"'{spec.name}' was built for patches of {spec.patch_size}, found {size}.")


NETWORKS.register("transunet")(NetworkEntry(build=TransUNet, citation=TransUNet.citation, ranks=(2,), divisor=16))
