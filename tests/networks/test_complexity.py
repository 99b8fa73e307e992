"""Counting parameters and multiply-adds, and measuring time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medkd.networks import build_network
from medkd.networks.complexity import count_macs, count_parameters, latency_ms
from medkd.networks.reference import build_weightless, reference_spec
from tests.networks.checks import architecture, small


def test_tensors_registered_twice_count_once_frozen_or_not() -> None:
    first, second = nn.Linear(3, 5), nn.Linear(3, 5)
    net = nn.ModuleList([first, nn.Sequential(first), second])
    assert count_parameters(net) == 2 * (15 + 5)
    second.weight.data = first.weight.data
    assert count_parameters(net) == 15 + 5 + 5
    first.requires_grad_(False)
    assert count_parameters(net) == 15 + 5 + 5


@pytest.mark.parametrize("name", ["plain_unet", "resenc_unet_l"])
def test_library_networks_that_register_everything_twice_count_once(name: str) -> None:
    spec = small(name, 3, architecture=architecture(3))
    net = build_network(spec)
    names = dict(net.named_parameters(remove_duplicate=False))
    unique = {p.data_ptr(): p.numel() for p in names.values()}
    assert len(names) > len(unique)
    assert count_parameters(net) == sum(unique.values())
    with torch.device("meta"):
        assert count_parameters(build_network(spec)) == sum(unique.values())


def test_multiply_adds_follow_the_formula() -> None:
    net = nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1, groups=2),
        nn.ConvTranspose3d(6, 4, 2, 2),
        nn.InstanceNorm3d(4),
        nn.Flatten(),
        nn.Linear(4 * 512, 7),
    )
    convolution = 4**3 * 6 * (2 // 2) * 27
    transposed = 4**3 * 6 * 4 * 8
    assert count_macs(net, (1, 2, 4, 4, 4)) == convolution + transposed + 4 * 512 * 7
    assert count_macs(net, (3, 2, 4, 4, 4)) == 3 * count_macs(net, (1, 2, 4, 4, 4))


@pytest.mark.parametrize(("name", "expected"), [("res_unet", 88.6), ("unet_tiny", 8.12), ("segresnet", 61.5)])
def test_multiply_adds_are_the_cards(name: str, expected: float) -> None:
    assert count_macs(build_weightless(reference_spec(name, 3)), (1, 1, 96, 96, 96)) / 1e9 == pytest.approx(
        expected, rel=0.005
    )


def test_measuring_leaves_the_network_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert latency_ms(net, (1, 1, 8, 8), "cpu", repeats=3) > 0
    count_macs(net, (1, 1, 8, 8))
    assert net.training and all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_latency_is_the_median_after_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0, 9, 9, 18, 18, 18.001, 19, 19.003, 20, 20.1])
    monkeypatch.setattr("medkd.networks.complexity.time.perf_counter", lambda: next(ticks))
    assert latency_ms(nn.Identity(), (1, 1, 2, 2), repeats=3) == pytest.approx(3)
