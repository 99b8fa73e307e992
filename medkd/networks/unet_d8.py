"""The 2D library's U-Nets on a dilated ResNet-V1c: ``unet_r18_d8``, ``unet_r50_d8``, ``attention_unet_r18_d8``.

The last has gates on its skips.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medkd.core.features import Tap
from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.encoder_decoder import EncoderDecoder, numbered
from medkd.networks.fcn import STRIDES, WIDTHS, resnet_taps
from medkd.networks.initialization import kaiming_fan_out
from medkd.networks.resnet_d8 import classifier, conv_bn_relu, resnet_v1c

_AUXILIARY = 0.25  # weight of the auxiliary head's loss beside the main one's: 1/7 and 4/7


class _Layer(nn.Sequential):
    """Convolution, norm and activation: batch norm and ReLU, or as the R50 has it instance norm and leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, instance: bool) -> None:
        convolution, norm, activation = conv_bn_relu(inputs, outputs, kernel)
        if instance:
            norm, activation = nn.InstanceNorm2d(outputs), nn.LeakyReLU(inplace=True)
        super().__init__(convolution, norm, activation)


class AttentionGate(nn.Module):
    """The additive gate of the Attention U-Net: a map of weights for the skip, from the skip and the coarser features.

    Oktay et al., MIDL 2018, arXiv 1804.03999; with the output convolution and the combining one of the authors' code.

    Args:
        skip: channels of the skip, and inside.
        gate: channels of the coarser features.
    """

    def __init__(self, skip: int, gate: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(skip, skip, 2, stride=2, bias=False)
        self.phi = nn.Conv2d(gate, skip, 1)
        self.psi = nn.Conv2d(skip, 1, 1)
        self.out = nn.Sequential(nn.Conv2d(skip, skip, 1), nn.BatchNorm2d(skip))
        self.combine = nn.Sequential(nn.Conv2d(skip, skip, 1), nn.BatchNorm2d(skip), nn.ReLU(inplace=True))

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """The skip, weighted: ``(B, skip, *size)`` from that and ``(B, gate, …)`` of any size."""
        inner = self.theta(skip)
        coarse = functional.interpolate(self.phi(gate), inner.shape[2:], mode="bilinear", align_corners=False)
        weights = torch.sigmoid(self.psi(functional.relu(inner + coarse)))
        weights = functional.interpolate(weights, skip.shape[2:], mode="bilinear", align_corners=False)
        return self.combine(self.out(skip * weights))


class _Step(nn.Module):
    """One decoder step: bring the coarser features to the skip's channels and size, join, two convolutions."""

    def __init__(self, coarse: int, skip: int, instance: bool, gated: bool) -> None:
        super().__init__()
        self.bring = _Layer(coarse, skip, 1, instance)
        self.gate = AttentionGate(skip, coarse) if gated else None
        self.convs = nn.Sequential(_Layer(2 * skip, skip, 3, instance), _Layer(skip, skip, 3, instance))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``(B, coarse, …)`` and ``(B, skip, *size)`` → ``(B, skip, *size)``."""
        kept = skip if self.gate is None else self.gate(skip, x)
        if x.shape[2:] != skip.shape[2:]:
            x = functional.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
        return self.convs(torch.cat((kept, self.bring(x)), 1))


class UNetD8(EncoderDecoder):
    """ResNet-V1c with output stride 8 whose four stages are the levels of a U-Net; a convolution to logits at stride 4.

    With deep supervision R18 has an auxiliary head on its first decoder step; R50 has instance norm and none.
    Configurations ``unet_r18v1c_d8`` and ``unet_r50_s4_d8`` of the medical 2D library; the decoder is written from
    them, since the library's code does not hold it.

    Ronneberger, Fischer, Brox, MICCAI 2015, arXiv 1505.04597.
    """

    citation = "Ronneberger et al., MICCAI 2015, arXiv 1505.04597; mmseg-kd's unet_r18v1c_d8 and unet_r50_s4_d8"

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        depth = 50 if "_r50" in spec.name else 18
        gated, instance = spec.name.startswith("attention"), depth == 50
        widths = WIDTHS[depth]
        self.net = resnet_v1c(spec, depth, **({"norm_layer": nn.InstanceNorm2d} if instance else {}))
        self.encoder_path = "net"
        self.decoder = nn.ModuleList(_Step(widths[i + 1], widths[i], instance, gated) for i in (2, 1, 0))
        self.classify = nn.Sequential(*classifier(widths[0], spec.num_outputs))
        self.decoder.apply(kaiming_fan_out)
        self.classify.apply(kaiming_fan_out)
        self.auxiliary: nn.Module | None = None
        if depth == 18:
            self.auxiliary = nn.Sequential(*classifier(widths[2], spec.num_outputs)).apply(kaiming_fan_out)
            self.auxiliary_weight = _AUXILIARY
        self.steps = len(self.decoder)
        *encoder, bottleneck = resnet_taps(self, widths)
        self.set_taps(encoder, bottleneck, self._decoder_taps(widths))
        self.deep_supervision = spec.deep_supervision and self.auxiliary is not None
        self.deep_supervision_strides = ((1, 1), (1, 1)) if self.deep_supervision else ()

    def _decoder_taps(self, widths: Sequence[int]) -> list[Tap]:
        taps = []
        for index, path in enumerate(numbered("decoder", self.steps)):
            level = 2 - index
            taps.append(self.tap(f"dec{level}", widths[level], STRIDES[level], path))
        return taps

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits; in training with deep supervision those of the auxiliary head come second."""
        if not (self.training and self.deep_supervision and self.auxiliary is not None):
            return super().forward(x)
        features = self.encode(x)
        self._features = features if self.remember else None
        first = self.step(0, features[-1], features)
        size = x.shape[2:]
        side = functional.interpolate(self.auxiliary(first), size, mode="bilinear", align_corners=False)
        return [self._finish(1, first, features), side]

    def encode(self, x: Tensor) -> list[Tensor]:
        """Outputs of the four layers, strides 4, 8, 8 and 8."""
        stem = self.net.maxpool(self.net.act1(self.net.bn1(self.net.conv1(x))))
        features = []
        for layer in (self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4):
            stem = layer(stem)
            features.append(stem)
        return features

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Join the next finer stage."""
        return self.decoder[index](x, self.skip(index, features))

    def head(self, index: int, x: Tensor) -> Tensor:
        """Dropout and classifier, then bilinear interpolation to the input's resolution."""
        return functional.interpolate(self.classify(x), scale_factor=4, mode="bilinear", align_corners=False)


for _name in ("unet_r18_d8", "unet_r50_d8", "attention_unet_r18_d8"):
    NETWORKS.register(_name)(
        NetworkEntry(
            build=UNetD8,
            citation=UNetD8.citation,
            ranks=(2,),
            divisor=8,
            deep_supervision=_name != "unet_r50_d8",
        )
    )
