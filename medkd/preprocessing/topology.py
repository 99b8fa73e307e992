"""Shape of a U-Net from spacing and patch, and what it costs in memory: nnU-Net's rules as formulas.

Isensee et al., Nature Methods 18 (2021), doi:10.1038/s41592-020-01008-z; residual encoders: Isensee et al., MICCAI
2024, arXiv:2404.09556.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from operator import floordiv, mul

MIN_EDGE = 4  # voxels per axis that a bottleneck keeps
BASE_FEATURES = 32


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A family of planned U-Nets.

    Attributes:
        reference_3d: feature-map elements per sample that ``memory_gb`` holds at batch 2 in 3D.
        reference_2d: the same at batch 12 in 2D.
        memory_gb: GPU memory for which the references hold; they scale linearly with it.
        blocks_encoder: convolutions or residual blocks per encoder stage; the last value goes on.
        blocks_decoder: convolutions per decoder stage.
        residual: residual encoder with a stem, else plain convolutions.
        covered: largest share of the data set's voxels in one batch.
    """

    reference_3d: float
    reference_2d: float
    memory_gb: float
    blocks_encoder: tuple[int, ...]
    blocks_decoder: int
    residual: bool
    covered: float


_RESIDUAL_BLOCKS = (1, 3, 4, 6)

PRESETS: dict[str, Preset] = {
    "plain_unet": Preset(
        reference_3d=5.6e8,
        reference_2d=8.5e7,
        memory_gb=8,
        blocks_encoder=(2,),
        blocks_decoder=2,
        residual=False,
        covered=0.05,
    ),
    "resenc_unet_m": Preset(
        reference_3d=6.8e8,
        reference_2d=1.35e8,
        memory_gb=8,
        blocks_encoder=_RESIDUAL_BLOCKS,
        blocks_decoder=1,
        residual=True,
        covered=1.0,
    ),
    "resenc_unet_l": Preset(
        reference_3d=2.1e9,
        reference_2d=3.8e8,
        memory_gb=24,
        blocks_encoder=_RESIDUAL_BLOCKS,
        blocks_decoder=1,
        residual=True,
        covered=1.0,
    ),
    "resenc_unet_xl": Preset(
        reference_3d=3.6e9,
        reference_2d=5.6e8,
        memory_gb=40,
        blocks_encoder=_RESIDUAL_BLOCKS,
        blocks_decoder=1,
        residual=True,
        covered=1.0,
    ),
}


@dataclass(frozen=True)
class Topology:
    """Down-sampling of a U-Net, finest stage first.

    Attributes:
        strides: per stage and axis; the first stage does not stride.
        kernels: convolution kernel per stage and axis.
        patch_size: the given patch, enlarged to a multiple of the whole stride.
        divisor: the whole stride per axis.
    """

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    patch_size: tuple[int, ...]
    divisor: tuple[int, ...]


def topology(spacing: Sequence[float], patch_size: Sequence[float]) -> Topology:
    """Choose strides and kernels.

    Stage by stage, the axes with at least 8 voxels whose spacing is below twice the finest of theirs are halved (a
    single remaining axis only from 12 voxels on). A kernel is 1 along an axis until its spacing comes below twice the
    finest of all axes, then 3 for good; the bottleneck's is 3.

    Args:
        spacing: voxel size in mm per axis.
        patch_size: voxels per axis; halves (of medians) are allowed.
    """
    rank = len(spacing)
    spacings, sizes = list(spacing), list(patch_size)
    strides, divisor = [(1,) * rank], [1] * rank
    kernels, kernel = [], [1] * rank
    axes = _axes_to_halve(spacings, sizes)
    while axes:
        finest = min(spacings)
        stride = [1] * rank
        for axis in range(rank):
            if spacings[axis] / finest < 2:
                kernel[axis] = 3
        for axis in axes:
            stride[axis] = 2
            divisor[axis] *= 2
            spacings[axis] *= 2
            sizes[axis] = ceil(sizes[axis] / 2)
        kernels.append(tuple(kernel))
        strides.append(tuple(stride))
        axes = _axes_to_halve(spacings, sizes)
    kernels.append((3,) * rank)
    padded = tuple(map(_next_multiple, patch_size, divisor))
    return Topology(tuple(strides), tuple(kernels), padded, tuple(divisor))


def _next_multiple(size: float, divisor: int) -> int:
    return ceil(size / divisor) * divisor


def _axes_to_halve(spacings: Sequence[float], sizes: Sequence[float]) -> list[int]:
    large = [axis for axis, size in enumerate(sizes) if size >= 2 * MIN_EDGE]
    if not large:
        return []
    finest = min(spacings[axis] for axis in large)
    axes = [axis for axis in large if spacings[axis] / finest < 2]
    if len(axes) == 1 and sizes[axes[0]] < 3 * MIN_EDGE:
        return []
    return axes


def features_per_stage(stages: int, rank: int) -> tuple[int, ...]:
    """``min(32·2^i, 320)`` channels at stage i in 3D, at most 512 in 2D."""
    most = 512 if rank == 2 else 320
    return tuple(min(BASE_FEATURES * 2**stage, most) for stage in range(stages))


def blocks(preset: Preset, stages: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks per encoder stage and convolutions per decoder stage."""
    given = preset.blocks_encoder
    encoder = given + given[-1:] * (stages - len(given))  # the last value goes on
    return encoder[:stages], (preset.blocks_decoder,) * (stages - 1)


def feature_map_elements(preset: Preset, shape: Topology, patch_size: Sequence[int], num_outputs: int) -> int:
    """Elements of all convolution outputs for one sample, nnU-Net's stand-in for memory.

    The same number as ``compute_conv_feature_map_size`` of dynamic-network-architectures without deep supervision.
    Encoder
    stage of f channels and v voxels: ``n·f·v`` (plain) or ``2n·f·v``, plus ``f·v`` where the skip is projected
    (residual), plus a stem of one convolution; decoder stage: ``(n + 1)·f·v`` with the transposed convolution; head:
    classes times voxels.

    Args:
        preset: the family.
        shape: strides.
        patch_size: voxels per axis.
        num_outputs: output channels.
    """
    stages = len(shape.strides)
    features = features_per_stage(stages, len(patch_size))
    encoder, decoder = blocks(preset, stages)
    voxels, size = [], list(patch_size)
    for stride in shape.strides:
        size = list(map(floordiv, size, stride))
        voxels.append(prod(size))
    maps = list(map(mul, features, voxels))  # elements of one convolution's output per stage
    total = num_outputs * voxels[0]
    if preset.residual:
        stem, projections = features[0] * prod(patch_size), sum(maps[1:])  # every stage but the first strides
        total += stem + projections + 2 * _sumprod(encoder, maps)
    else:
        total += _sumprod(encoder, maps)
    transposed = sum(maps[:-1])
    return total + _sumprod(decoder, maps) + transposed


def _sumprod(counts: Sequence[int], values: Sequence[int]) -> int:
    """Sum of products, over as many pairs as there are counts."""
    return sum(map(mul, counts, values))
