"""Convolutions by fewer multiplications against the definition in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medkd.inference import winograd
from medkd.inference.tuning import tune
from medkd.inference.winograd import WinogradKernel, pays

CPU = torch.device("cpu")


def exact(x: torch.Tensor, conv: nn.Conv3d) -> torch.Tensor:
    bias = None if conv.bias is None else conv.bias.double()
    return F.conv3d(x.double(), conv.weight.double(), bias, padding=1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("depth", [1, 4, 9, 10, 11, 12])
def test_it_is_the_convolution(depth: int, bias: bool) -> None:
    torch.manual_seed(depth)
    conv, x = nn.Conv3d(5, 3, 3, padding=1, bias=bias), torch.randn(2, 5, depth, 6, 7) * 3 + 1
    with torch.inference_mode():
        found = WinogradKernel(conv.weight, conv.bias)(x)
        torch.testing.assert_close(found.double(), exact(x, conv), atol=2e-5, rtol=1e-5)


def test_large_maps_are_made_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = nn.Conv3d(4, 6, 3, padding=1), torch.randn(1, 4, 21, 8, 8)
    kernel, sizes = WinogradKernel(conv.weight, conv.bias), []
    whole, own = kernel(x), torch.mkldnn_convolution

    def noted(image: torch.Tensor, *more: Any) -> torch.Tensor:
        sizes.append(image.shape[2])
        return own(image, *more)

    monkeypatch.setattr(winograd, "_BYTES", 2 * 4 * 6 * 6 * 64)
    monkeypatch.setattr(torch, "mkldnn_convolution", noted)
    torch.testing.assert_close(kernel(x), whole, atol=1e-6, rtol=1e-6)
    assert sizes == [2, 2, 2]  # groups of four slices


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a_tuned_network_takes_it_where_it_pays(layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, ...]] = []
    own = WinogradKernel.__call__

    def noted(kernel: WinogradKernel, x: torch.Tensor) -> torch.Tensor:
        taken.append(tuple(x.shape))
        return own(kernel, x)

    monkeypatch.setattr(WinogradKernel, "__call__", noted)
    plain = nn.Conv3d(32, 24, 3, padding=1)
    others = [
        nn.Conv3d(24, 24, 3, padding=2, dilation=2),
        nn.Conv3d(24, 24, 3, padding=1, groups=2),
        nn.Conv3d(24, 24, (1, 3, 3), padding=(0, 1, 1)),
        nn.Conv3d(24, 24, 3, stride=2, padding=1),
    ]
    network = nn.Sequential(plain, *others).eval().requires_grad_(False)
    x = torch.randn(2, 32, 12, 10, 11).to(memory_format=layout)
    with torch.inference_mode():
        expected = network.double()(x.double())
        found = tune(network.float(), CPU)(x)
    assert taken == [(2, 32, 12, 10, 11)]
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_changed_weights_are_transformed_anew(part: str) -> None:
    conv, x = nn.Conv3d(24, 24, 3, padding=1).requires_grad_(False), torch.randn(1, 24, 12, 10, 10)
    tune(nn.Sequential(conv), CPU)
    with torch.inference_mode():
        conv(x)
    copied = copy.deepcopy(conv)
    for changed in (conv, copied):
        getattr(changed, part).data.add_(0.1)  # which torch does not count
        with torch.inference_mode():
            torch.testing.assert_close(changed(x).double(), exact(x, changed), atol=1e-4, rtol=1e-5)


def test_networks_made_in_inference_mode_predict() -> None:
    with torch.inference_mode():
        conv, x = nn.Conv3d(24, 24, 3, padding=1), torch.randn(1, 24, 12, 10, 10)
        expected = conv(x)
        torch.testing.assert_close(tune(conv, CPU)(x), expected, atol=1e-5, rtol=1e-5)


def test_small_maps_and_few_channels_are_left_to_onednn() -> None:
    assert pays((1, 32, 40, 56, 40), 32)
    assert not pays((1, 32, 40, 56, 40), 16) and not pays((1, 16, 40, 56, 40), 32)
    assert not pays((1, 64, 8, 8, 8), 64) and not pays((1, 32, 5, 70, 70), 32)
