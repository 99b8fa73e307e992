"""espnetv2, mobile_unet and lcov_net: the light students of the ACF-BCKD paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medkd.networks import build_network, espnetv2
from medkd.networks.complexity import count_macs
from medkd.networks.espnetv2 import Pyramid, PyramidPool
from medkd.networks.reference import build_weightless, reference_spec
from tests.networks.checks import check_network, parameters_in_millions, small

NAMES = ("espnetv2", "mobile_unet", "lcov_net")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobile_unet", (13.653, 13.653, 13.653)),
        ("lcov_net", (0.813, 0.813, 0.813)),
        ("espnetv2", (0.286, 0.286, 0.291)),
    ],
)
def test_parameter_counts_are_the_cards_without_unused_ones(name: str, expected: tuple[float, ...]) -> None:
    """ESPNetV2's count at 14 and 3 classes is a little above the card's, since its pyramids keep eight channels."""
    counts = [parameters_in_millions(name, *data, patch=32) for data in ((1, 14), (1, 17), (4, 3))]
    assert counts == list(expected)


def test_espnet_with_the_originals_pyramid_width_has_the_cards_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espnetv2, "NARROWEST_PYRAMID", 1)
    assert [parameters_in_millions("espnetv2", *data, patch=32) for data in ((1, 14), (1, 17), (4, 3))] == [
        0.284,
        0.286,
        0.279,
    ]
    assert multiply_adds("espnetv2") == pytest.approx(0.85, rel=0.01)


@pytest.mark.parametrize(("name", "expected"), [("mobile_unet", 2.35), ("lcov_net", 11.0)])
def test_multiply_adds_are_the_cards(name: str, expected: float) -> None:
    assert multiply_adds(name) == pytest.approx(expected, rel=0.005)


def multiply_adds(name: str) -> float:
    return count_macs(build_weightless(reference_spec(name, 3)), (1, 1, 96, 96, 96)) / 1e9


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_taps_gradients_and_continuation(name: str, rank: int) -> None:
    net = build_network(small(name, rank, channels=2, patch=32))
    check_network(net)


def test_students_publish_the_features_that_the_paper_distils() -> None:
    """ESPNetV2 at half resolution after norm and activation, the other two at full resolution, 32, 16 and 16
    channels.
    """
    found = {name: build_network(small(name, 3, patch=32)).taps[-1] for name in NAMES}
    assert [(found[n].channels, found[n].stride[0]) for n in NAMES] == [(32, 2), (16, 1), (16, 1)]


@pytest.mark.parametrize(("limit", "expected"), [(13, [1, 2, 3, 4]), (9, [1, 2, 3, 4]), (7, [1, 1, 2, 3])])
def test_espnet_dilations_respect_the_receptive_field(limit: int, expected: list[int]) -> None:
    assert [branch.dilation[0] for branch in Pyramid(2, 16, 16, limit).branches] == expected


def test_espnet_pyramid_fuses_the_scales_of_each_channel() -> None:
    """With identity-like scales, channel c of the fused map depends on channel c of the projection only."""
    pool = PyramidPool(2, 6, 6, 3).eval()
    seen: list[torch.Tensor] = []
    pool.project = nn.Identity()
    pool.fuse.register_forward_hook(lambda _m, _i, output: seen.append(output))
    x = torch.randn(1, 6, 8, 8)
    pool(x)
    x[:, 2] += 1.0
    pool(x)
    changed = (seen[0] != seen[1]).flatten(2).any(2)[0]
    assert changed.tolist() == [False, False, True, False, False, False]


def test_lcov_net_in_3d_works_across_the_first_axis() -> None:
    block = build_network(small("lcov_net", 3, patch=32)).encoder[0]
    assert block.across[0].kernel_size == (3, 1, 1)
    assert block.within[0].kernel_size == (1, 3, 3)


def test_mobile_unet_has_shortcuts_exactly_where_the_stride_is_one() -> None:
    blocks = [b for stage in build_network(small("mobile_unet", 2, patch=32)).encoder for b in stage]
    assert [b.residual for b in blocks] == [True] + [False, True] + [False, True, True] + [False, True, True, True] + [
        True
    ] * 3 + [
        False,
        True,
        True,
    ] + [True]
