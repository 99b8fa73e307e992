"""Convolutions that are matrix products give what torch's give, and make no copies of the maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medkd.core.live_memory import LivePeak
from medkd.inference import products
from medkd.inference.fast_layers import FastConvTranspose3d
from medkd.inference.tuning import tune

CPU = torch.device("cpu")


def both_ways(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer gives in float64, and what it gives tuned."""
    exact = layer.double()(x.double())
    with torch.inference_mode():
        return exact.detach(), tune(layer.float().eval(), CPU)(x)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that were multiplied as matrices."""
    seen: list[tuple[int, ...]] = []
    own = products._product

    def noted(matrix: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(tuple(x.shape))
        return own(matrix, x, bias)

    monkeypatch.setattr(products, "_product", noted)
    return seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_head_gives_the_same(called: list[tuple[int, ...]], batch: int, bias: bool) -> None:
    expected, found = both_ways(nn.Sequential(nn.Conv3d(5, 7, 1, bias=bias)), torch.randn(batch, 5, 3, 4, 6))
    assert called == [(batch, 5, 3, 4, 6)]
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("step", [(2, 2, 2), (1, 2, 3)])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_transposed_convolution_gives_the_same(
    called: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, batch: int, step: tuple[int, int, int], bias: bool
) -> None:
    monkeypatch.setattr(products, "LEAST_VOXELS", 1)
    layer = nn.ConvTranspose3d(5, 7, step, step, bias=bias)
    expected, found = both_ways(nn.Sequential(layer), torch.randn(batch, 5, 3, 4, 6))
    assert len(called) == step[0] * step[1] * step[2] and isinstance(layer, FastConvTranspose3d)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


OTHERS = {
    "windows that meet": nn.ConvTranspose3d(4, 4, 3, 2),
    "a border": nn.ConvTranspose3d(4, 4, 2, 2, padding=1),
    "more at the end": nn.ConvTranspose3d(4, 4, 2, 2, output_padding=1),
    "groups": nn.ConvTranspose3d(4, 4, 2, 2, groups=2),
    "spread": nn.ConvTranspose3d(4, 4, 2, 2, dilation=2),
    "every second voxel": nn.Conv3d(4, 4, 1, 2),
    "voxels around": nn.Conv3d(4, 4, 1, padding=1),
    "groups of a head": nn.Conv3d(4, 4, 1, groups=2),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_convolutions_go_the_ordinary_way(
    called: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(products, "LEAST_VOXELS", 1)
    expected, found = both_ways(nn.Sequential(OTHERS[kind]), torch.randn(1, 4, 4, 5, 6))
    assert not called
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_head_makes_no_copy_of_the_maps() -> None:
    head, x = tune(nn.Sequential(nn.Conv3d(4, 40, 1)), CPU).eval(), torch.randn(1, 4, 20, 20, 20)
    with torch.inference_mode(), LivePeak() as live:
        found = head(x)
    assert live.highest <= 1.2 * found.element_size() * found.numel()
