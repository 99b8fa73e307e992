"""SegResNet."""

from __future__ import annotations

import pytest
import torch

from medkd.networks import build_network
from tests.networks.checks import check_network, image, parameters_in_millions, small


@pytest.mark.parametrize(("channels", "outputs", "expected"), [(1, 14, 4.701), (1, 17, 4.701), (4, 3, 4.702)])
def test_parameter_counts_are_the_cards(channels: int, outputs: int, expected: float) -> None:
    assert parameters_in_millions("segresnet", channels, outputs) == expected


@pytest.mark.parametrize("rank", [2, 3])
def test_taps_gradients_and_continuation(rank: int) -> None:
    check_network(build_network(small("segresnet", rank, channels=2)))


@pytest.mark.parametrize("rank", [2, 3])
def test_own_loop_equals_monais_forward(rank: int) -> None:
    net = build_network(small("segresnet", rank))
    x = image(net)
    assert torch.equal(net(x), net.net(x))


def test_every_tap_has_the_correction_of_its_residual_block() -> None:
    """Output minus input equals what the block's two convolutions compute, in spite of the addition in place."""
    net = build_network(small("segresnet", 3))
    assert all(tap.correction for tap in net.taps)
    block = net.get_submodule({tap.name: tap.module for tap in net.taps}["dec0"])
    x = torch.randn(1, 16, 8, 8, 8)
    branch = block.conv2(torch.relu(block.norm2(block.conv1(torch.relu(block.norm1(x))))))
    torch.testing.assert_close(block(x) - x, branch, rtol=1e-4, atol=1e-5)
