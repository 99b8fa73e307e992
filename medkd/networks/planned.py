"""What the planned U-Nets share: keyword arguments, taps and the decoder loop of dynamic-network-architectures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medkd.core.errors import RunError
from medkd.core.features import Stage, Tap
from medkd.core.plan import Architecture
from medkd.core.run import NetworkSpec
from medkd.networks.encoder_decoder import EncoderDecoder

# a narrower stage than this cannot carry an image on; nnU-Net's own smallest configurations stay above it
MIN_WIDTH = 4


class PlannedUNet(EncoderDecoder):
    """A U-Net of dynamic-network-architectures whose shape comes from the plan; ``net`` has nnU-Net's parameter names.

    Subclasses set :attr:`block_path`, the path from an encoder stage to its list of blocks, and build :attr:`net`.

    Raises:
        RunError: the patch is not a multiple of the network's total stride.
    """

    block_path = ""

    def __init__(self, spec: NetworkSpec, architecture: Architecture) -> None:
        super().__init__(spec)
        self.architecture = architecture
        self.strides = total_strides(architecture.strides)
        self._check_patch()
        self.widths = _narrowed(architecture.features_per_stage, spec.width_divisor)
        self.net: Any = self.build(keywords(spec, architecture, self.widths))
        self.steps = len(self.widths) - 1
        self.head_path = f"net.decoder.seg_layers.{self.steps - 1}"
        self.taps = (*self._encoder_taps(), *self._decoder_taps())
        self.resume = {"bottleneck": 0}
        for index in range(self.steps):
            self.resume[f"dec{self.steps - 1 - index}"] = index + 1
        self.deep_supervision = spec.deep_supervision
        self.deep_supervision_strides = self.strides[:-1]

    def build(self, shape: dict[str, Any]) -> nn.Module:
        """The initialised network for the constructor arguments that all of them share."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> list[Tensor]:
        """Outputs of all encoder stages, finest first."""
        return self.net.encoder(x)

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Transposed convolution, skip, convolutions."""
        decoder = self.net.decoder
        finer = decoder.transpconvs[index](x)
        return decoder.stages[index](torch.cat((finer, self.skip(index, features)), 1))

    def head(self, index: int, x: Tensor) -> Tensor:
        """The 1 × 1 convolution of a decoder stage."""
        return self.net.decoder.seg_layers[index](x)

    def _check_patch(self) -> None:
        patch = self.spec.patch_size
        total = self.strides[-1]
        for size, stride in zip(patch, total, strict=True):
            if size % stride:
                raise RunError(
                    f"'{self.spec.name}' needs patch axes that are multiples of {total}, found {patch}; "
                    "change --patch-size."
                )

    def _encoder_taps(self) -> list[Tap]:
        taps = []
        inputs = self.widths[0]  # a stem, where there is one, has the first stage's width
        for level, blocks in enumerate(self.architecture.blocks_encoder):
            width = self.widths[level]
            kept = inputs == width and set(self.architecture.strides[level]) == {1}
            last = level == self.steps
            stage: Stage = "bottleneck" if last else "encoder"
            tap = Tap(
                name="bottleneck" if last else f"enc{level}",
                channels=width,
                stride=self.strides[level],
                module=f"net.encoder.stages.{level}.{self.block_path}.{blocks - 1}",
                stage=stage,
                correction=blocks > 1 or (kept and self.has_stem),
            )
            taps.append(tap)
            inputs = width
        return taps

    def _decoder_taps(self) -> list[Tap]:
        taps = []
        for s, blocks in enumerate(self.architecture.blocks_decoder):
            level = self.steps - 1 - s
            module = f"net.decoder.stages.{s}.convs.{blocks - 1}"
            taps.append(
                Tap(
                    name=f"dec{level}",
                    channels=self.widths[level],
                    stride=self.strides[level],
                    module=module,
                    stage="decoder",
                    correction=blocks > 1,
                )
            )
        return taps

    @property
    def has_stem(self) -> bool:
        """Whether a convolution runs before the first stage, so that its first block has input and output of one
        shape.
        """
        return hasattr(self.net.encoder, "stem")


def total_strides(strides: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Stride of each stage relative to the input, per axis: the cumulative product of the stages' own strides."""
    total = [tuple(strides[0])]
    for stride in strides[1:]:
        axes = zip(total[-1], stride, strict=True)
        total.append(tuple(before * own for before, own in axes))
    return tuple(total)


def _narrowed(widths: tuple[int, ...], divisor: int) -> tuple[int, ...]:
    """The plan's widths of a student, none of them too narrow."""
    return tuple(max(width // divisor, MIN_WIDTH) for width in widths)


def keywords(spec: NetworkSpec, architecture: Architecture, widths: tuple[int, ...]) -> dict[str, Any]:
    """Constructor arguments that the U-Nets of dynamic-network-architectures share, with nnU-Net's choices."""
    three = len(spec.patch_size) == 3
    return {
        "input_channels": spec.in_channels,
        "n_stages": len(widths),
        "features_per_stage": widths,
        "conv_op": nn.Conv3d if three else nn.Conv2d,
        "kernel_sizes": architecture.kernel_sizes,
        "strides": architecture.strides,
        "num_classes": spec.num_outputs,
        "n_conv_per_stage_decoder": architecture.blocks_decoder,
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d if three else nn.InstanceNorm2d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": False,
    }
