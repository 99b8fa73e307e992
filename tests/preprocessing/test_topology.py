from __future__ import annotations

from math import prod

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from medkd.preprocessing.topology import PRESETS, Topology, blocks, feature_map_elements, features_per_stage, topology


def reference_elements(name: str, shape: Topology, patch: tuple[int, ...], outputs: int) -> int:
    """What dynamic-network-architectures counts on the network itself."""
    stages, rank = len(shape.strides), len(patch)
    encoder, decoder = blocks(PRESETS[name], stages)
    conv = nn.Conv2d if rank == 2 else nn.Conv3d
    norm = nn.InstanceNorm2d if rank == 2 else nn.InstanceNorm3d
    common = (
        1,
        stages,
        features_per_stage(stages, rank),
        conv,
        shape.kernels,
        shape.strides,
        encoder,
        outputs,
        decoder,
    )
    build = ResidualEncoderUNet if PRESETS[name].residual else PlainConvUNet
    with torch.device("meta"):
        return int(
            build(*common, conv_bias=True, norm_op=norm, nonlin=nn.LeakyReLU).compute_conv_feature_map_size(patch)
        )


@pytest.mark.parametrize("name", ["plain_unet", "resenc_unet_m"])
@pytest.mark.parametrize(
    ("spacing", "patch"),
    [
        ((1.0, 1.0, 1.0), (40, 56, 40)),
        ((5.0, 1.5, 1.5), (20, 256, 224)),
        ((1.0, 1.0), (512, 448)),
        ((2.5, 0.8, 0.8), (56, 160, 192)),
    ],
)
def test_the_memory_formula_counts_what_the_networks_count(
    name: str, spacing: tuple[float, ...], patch: tuple[int, ...]
) -> None:
    shape = topology(spacing, patch)
    assert feature_map_elements(PRESETS[name], shape, shape.patch_size, 5) == reference_elements(
        name, shape, shape.patch_size, 5
    )


def test_isotropic_patches_are_halved_down_to_four_voxels() -> None:
    shape = topology((1, 1, 1), (128, 128, 128))
    assert shape.strides == ((1, 1, 1), *((2, 2, 2),) * 5)
    assert shape.kernels == ((3, 3, 3),) * 6
    assert shape.divisor == (32, 32, 32)


def test_a_coarse_axis_waits_until_the_others_are_as_coarse() -> None:
    shape = topology((5, 1.5, 1.5), (20, 256, 224))
    assert shape.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert [kernel[0] for kernel in shape.kernels] == [1, 3, 3, 3, 3, 3]


def test_a_single_remaining_axis_needs_twelve_voxels() -> None:
    assert topology((1, 1, 1), (4, 4, 11)).strides == ((1, 1, 1),)
    assert topology((1, 1, 1), (4, 4, 12)).strides == ((1, 1, 1), (1, 1, 2))


def test_patches_grow_to_a_multiple_of_the_stride() -> None:
    for patch in [(36, 50, 35), (35.5, 50.5, 35), (9, 300, 17), (3, 5, 7)]:
        shape = topology((1, 1, 1), patch)
        for size, given, divisor in zip(shape.patch_size, patch, shape.divisor, strict=True):
            assert size % divisor == 0 and given <= size < given + divisor


def test_features_double_up_to_the_cap() -> None:
    assert features_per_stage(6, 3) == (32, 64, 128, 256, 320, 320)
    assert features_per_stage(6, 2) == (32, 64, 128, 256, 512, 512)


def test_every_axis_keeps_four_voxels_in_the_bottleneck() -> None:
    for patch in [(8, 8, 8), (64, 96, 160), (16, 320, 320)]:
        shape = topology((1, 1, 1), patch)
        assert all(size // divisor >= 4 for size, divisor in zip(shape.patch_size, shape.divisor, strict=True))
        assert prod(shape.divisor) >= 2
