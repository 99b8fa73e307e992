"""The smallest patch of every network: it trains, or one sentence says which does."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from medkd.core.errors import RunError
from medkd.core.run import NetworkSpec
from medkd.networks import NETWORKS, build_network, fit_patch
from medkd.networks.base import NetworkEntry, SegmentationNetwork

HUGE = ("mednext_m", "mednext_l", "unet_r50")  # as their smaller siblings
CASES = [
    (name, rank)
    for name in NETWORKS
    for rank in NETWORKS[name].ranks
    if not NETWORKS[name].planned and not (name in HUGE and rank == 3)
]


def spec_of(name: str, patch: tuple[int, ...]) -> NetworkSpec:
    return NetworkSpec(name=name, in_channels=1, num_outputs=2, patch_size=patch)


def named(text: str) -> tuple[int, ...]:
    """The patch that a sentence recommends."""
    found = re.search(r"that works is ([\d ×]+) \(--patch-size\)\.$", text)
    assert found is not None and "\n" not in text
    return tuple(int(axis) for axis in found[1].split(" × "))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rank"), CASES)
def test_the_smallest_patch_trains_or_another_is_named(name: str, rank: int) -> None:
    torch.manual_seed(0)
    patch = fit_patch(name, (1,) * rank)
    state = torch.get_rng_state()
    try:
        network = build_network(spec_of(name, patch))
    except RunError as error:
        patch = named(str(error))
        torch.set_rng_state(state)
        network = build_network(spec_of(name, patch))
    logits = network.train()(torch.rand(2, 1, *patch))
    assert isinstance(logits, Tensor) and logits.shape == (2, 2, *patch) and bool(logits.isfinite().all())


@pytest.mark.parametrize(
    ("name", "patch", "works"),
    [
        ("unet_tiny", (8, 8, 8), (8, 8, 16)),
        ("res_unet", (8, 8, 8), (8, 8, 16)),
        ("swin_unetr", (32, 32, 32), (32, 32, 64)),
        ("lcov_net", (16, 16, 32), (32, 32, 32)),
    ],
)
def test_too_small_patches_are_refused(name: str, patch: tuple[int, ...], works: tuple[int, ...]) -> None:
    with pytest.raises(RunError, match=rf"'{name}' cannot be trained on patches of ") as caught:
        build_network(spec_of(name, patch))
    assert named(str(caught.value)) == works


class Deep(SegmentationNetwork):
    """Somebody's own network without taps, with a norm over what is left of a patch after pooling by 16."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        self.count = nn.BatchNorm2d(spec.in_channels)
        self.norm = nn.InstanceNorm2d(spec.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        small = self.norm(nn.functional.max_pool2d(self.count(x), 16))
        return nn.functional.interpolate(small, x.shape[2:])


def test_networks_from_elsewhere_are_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS._entries, "deep", NetworkEntry(build=Deep, citation="", ranks=(2,), divisor=16))
    with pytest.raises(RunError, match="that works is 16 × 32"):
        build_network(spec_of("deep", (16, 16)))
    network = build_network(spec_of("deep", (32, 16)))
    assert int(network.count.num_batches_tracked) == 0  # trying it leaves no trace
    assert bool(torch.isclose(network.count.running_mean, torch.zeros(1)).all())
