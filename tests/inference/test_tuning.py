"""The faster routes give the same numbers, and leave alone what they do not understand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medkd.inference import fast_layers
from medkd.inference.predictor import Predictor
from medkd.inference.tuning import tune
from medkd.models.base import open_model
from medkd.networks.complexity import count_macs

CPU = torch.device("cpu")


def block(rank: int) -> nn.Sequential:
    """A convolution, a norm with weights that are not those of the start, and a strided convolution."""
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if rank == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    network = nn.Sequential(
        conv(3, 8, 3, padding=1), norm(8, affine=True), nn.LeakyReLU(), conv(8, 4, 3, 2, 1, bias=False), norm(4)
    )
    nn.init.normal_(network[1].weight)
    nn.init.normal_(network[1].bias)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("rank", [2, 3])
def test_results_are_equal_up_to_rounding(rank: int, batch: int) -> None:
    network, image = block(rank), torch.randn(batch, 3, *(6, 10, 9)[:rank]) * 5 + 2
    with torch.inference_mode():
        before = network(image)
        after = tune(network, CPU)(image)
    assert any(type(m).__name__.startswith("Grouped") for m in network)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_names_weights_and_costs_stay(make_run: Callable[..., Path]) -> None:
    run = make_run(folds=1)
    plain, tuned = open_model(run).load().networks[0], Predictor.from_run(run, device="cpu").networks[0]
    assert any(type(m).__name__ == "FastConv3d" for m in tuned.modules())
    assert all(torch.equal(a, tuned.state_dict()[name]) for name, a in plain.state_dict().items())
    assert count_macs(tuned, (1, 1, 16, 16, 16)) == count_macs(plain, (1, 1, 16, 16, 16))


def test_bf16_goes_the_ordinary_way() -> None:
    network, image = tune(block(3), CPU), torch.randn(1, 3, 6, 10, 9)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert network[0](image).dtype == torch.bfloat16


def test_other_modules_and_devices_are_left_alone() -> None:
    running = nn.Sequential(
        nn.InstanceNorm3d(2, track_running_stats=True), nn.Conv3d(2, 2, 3, padding="same"), nn.BatchNorm3d(2)
    )
    types = [type(m) for m in running]
    assert [type(m) for m in tune(running, CPU)] == types
    assert type(tune(block(3), torch.device("cuda"))[1]) is nn.InstanceNorm3d


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs, groups", [(2, 1), (2, 2), (5, 1)])
def test_large_maps_are_made_a_few_channels_at_a_time(
    monkeypatch: pytest.MonkeyPatch, inputs: int, groups: int, bias: bool
) -> None:
    monkeypatch.setattr(fast_layers, "_LARGE_BYTES", 1)
    made: list[int] = []
    own = torch.mkldnn_convolution

    def noted(x: torch.Tensor, weight: torch.Tensor, *others: Any) -> torch.Tensor:
        made.append(len(weight))
        return own(x, weight, *others)

    monkeypatch.setattr(torch, "mkldnn_convolution", noted)
    plain = nn.Sequential(nn.Conv3d(inputs, 38, 3, 2, 1, groups=groups, bias=bias)).eval().requires_grad_(False)
    image = torch.randn(2, inputs, 6, 7, 9)
    expected = plain.double()(image.double())
    with torch.inference_mode():
        found = tune(plain.float(), CPU)(image)
    assert made == ([16, 16, 6] if (inputs, groups) == (2, 1) else [38])
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
