"""The Haar transform against loops over cells, and its inverse."""

from __future__ import annotations

from itertools import product
from math import ceil, sqrt

import pytest
import torch
from torch import Tensor

from medkd.distillation.prompts.haar import haar, inverse_haar, scales_of

SIZES = [(8, 8), (7, 10), (1, 5), (16, 4), (4, 6, 8), (5, 3, 7), (1, 9, 4)]


def slow(x: Tensor) -> dict[tuple[int, ...], Tensor]:
    """One scale: per choice of sum (0) or difference (1) along each axis, the band, cell by cell."""
    size = x.shape[2:]
    half = [ceil(n / 2) for n in size]
    bands = {}
    for kinds in product((0, 1), repeat=len(size)):
        band = torch.zeros(*x.shape[:2], *half)
        for cell in product(*(range(h) for h in half)):
            for corner in product((0, 1), repeat=len(size)):
                place = [2 * c + d for c, d in zip(cell, corner, strict=True)]
                if all(p < n for p, n in zip(place, size, strict=True)):
                    sign = (-1) ** sum(k * d for k, d in zip(kinds, corner, strict=True))
                    band[(..., *cell)] += sign * x[(..., *place)] / sqrt(2) ** len(size)
        bands[kinds] = band
    return bands


@pytest.mark.parametrize("size", SIZES)
def test_every_scale_equals_loops_over_cells(size: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *size)
    low, highs = haar(x, 2)
    for high in highs:
        bands = slow(x)
        for place, kinds in enumerate(list(product((0, 1), repeat=len(size)))[1:]):
            assert torch.allclose(high[:, :, place], bands[kinds], atol=1e-5)
        x = bands[(0,) * len(size)]
    assert torch.allclose(low, x, atol=1e-5) and highs[0].shape[2] == 2 ** len(size) - 1


@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_gives_the_map_back_and_energy_is_kept(size: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *size)
    low, highs = haar(x, 3)
    assert torch.allclose(inverse_haar(low, highs, size), x, atol=1e-5)
    assert float(low.square().sum() + sum(h.square().sum() for h in highs)) == pytest.approx(
        float(x.square().sum()), rel=1e-4
    )


def test_a_constant_map_has_no_high_bands() -> None:
    low, highs = haar(torch.full((1, 1, 8, 8), 3.0), 3)
    assert all(not high.any() for high in highs) and low.flatten().tolist() == pytest.approx([24.0])


def test_scales_are_limited_by_the_shortest_axis() -> None:
    found = [scales_of(size, 3) for size in ((64, 64), (8, 9), (7, 80), (4, 32, 32), (3, 3), (1, 50))]
    assert found == [3, 3, 2, 2, 1, 1]
