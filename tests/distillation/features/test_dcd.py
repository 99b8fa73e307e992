"""Detail consistent distillation against the transform written out with whole kernels."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy import signal

from medkd.distillation.features.dcd import DB4, HAAR, analyse, high_pass
from tests.distillation.toys import features_terms, pair_method


def test_filters_are_orthonormal_and_db4_does_not_see_cubics() -> None:
    for low in (HAAR, DB4):
        high, count = high_pass(low), len(low)
        for shift in range(0, count, 2):
            own = np.dot(low[shift:], low[: count - shift])
            assert own == pytest.approx(1.0 if shift == 0 else 0.0, abs=1e-12)
            assert np.dot(high[shift:], low[: count - shift]) == pytest.approx(0.0, abs=1e-12)
        assert sum(low) == pytest.approx(2**0.5, abs=1e-12)
    places = np.arange(8.0)
    for power in range(4):
        assert np.dot(high_pass(DB4), places**power) == pytest.approx(0.0, abs=1e-8)


def test_bands_of_haar_keep_the_sum_of_squares() -> None:
    maps = torch.randn(2, 3, 6, 8, 4)
    bands = analyse(maps, HAAR)
    assert sorted(bands) == sorted(product((0, 1), repeat=3))
    total = sum(float(band.square().sum()) for band in bands.values())
    assert total == pytest.approx(float(maps.square().sum()), rel=1e-5)


def by_blocks(difference: np.ndarray) -> float:
    """Haar details of even maps: what is left of every block of 2 once its mean is taken away, over two levels."""
    errors = []
    for _ in range(2):
        shape = difference.shape
        blocks = difference.reshape(*shape[:2], shape[2] // 2, 2, shape[3] // 2, 2)
        means = blocks.mean(axis=(3, 5), keepdims=True)
        errors.append(((blocks - means) ** 2).sum() / difference.size)
        difference = 2 * means[:, :, :, 0, :, 0]
    return float(np.mean(errors))


def test_default_is_what_deviates_from_the_means_of_blocks() -> None:
    s, t = torch.randn(2, 4, 8, 12), 3 * torch.randn(2, 4, 8, 12) + 1
    found = float(features_terms(pair_method("dcd", 4, 4, 2, weight=2.0), s, t)["dcd"])
    assert found == pytest.approx(2 * by_blocks((s - t).numpy()) / float(t.var(unbiased=False)), rel=1e-4)


def as_released(difference: np.ndarray, levels: int) -> float:
    """The released loss with whole 3D kernels: correlate with db4, every second value; put bands 1 to 6 together with
    the turned filters; mean square, mean over levels.
    """
    low, high = np.array(DB4), np.array(high_pass(DB4))
    count, errors = len(low), []
    for _ in range(levels):
        squares, coarse = [], []
        for image in difference.reshape(-1, *difference.shape[2:]):
            joined: np.ndarray | None = None
            for number, axes in enumerate(product((low, high), repeat=3)):
                kernel = np.einsum("i,j,k->ijk", *axes)
                band = signal.correlate(np.pad(image, count - 1), kernel, mode="valid", method="direct")[::2, ::2, ::2]
                if number == 0:
                    coarse.append(band)
                if not 1 <= number <= 6:
                    continue
                wide = np.zeros([2 * side - 1 for side in band.shape])
                wide[::2, ::2, ::2] = band
                turned = np.einsum("i,j,k->ijk", *(taps[::-1] for taps in axes))
                part = signal.convolve(wide, turned, mode="full", method="direct")
                part = part[tuple(slice(count - 1, size - count + 1) for size in part.shape)]
                joined = part if joined is None else joined + part
            assert joined is not None
            cut = joined[tuple(slice(0, side) for side in image.shape)]
            squares.append(cut**2)
        errors.append(np.mean(squares))
        difference = np.stack(coarse).reshape(*difference.shape[:2], *coarse[0].shape)
    return float(np.mean(errors))


@pytest.mark.parametrize("size", [(6, 7, 4), (3, 2, 2)])
def test_paper_is_the_released_loss(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    s, t = torch.randn(1, 2, *size), torch.randn(1, 2, *size)
    found = float(features_terms(pair_method("dcd", 2, 2, variant="paper", weight=1.0), s, t)["dcd"])
    assert found == pytest.approx(as_released((s - t).double().numpy(), 3), rel=1e-4)


def test_a_coarse_difference_costs_nothing_and_a_fine_one_does() -> None:
    t = torch.randn(1, 3, 8, 8, 8)
    method = pair_method("dcd", 3, 3, levels=1)
    coarse = torch.randn(1, 3, 4, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    assert float(features_terms(method, t + coarse, t)["dcd"]) == pytest.approx(0.0, abs=1e-10)
    fine = torch.ones(1, 3, 8, 8, 8)
    fine[:, :, ::2] = -1
    assert float(features_terms(method, t + fine, t)["dcd"]) > 0.05


def test_maps_of_one_voxel_teach_too() -> None:
    t = torch.randn(1, 3, 1, 1, 1)
    for variant in ("default", "paper"):
        found = features_terms(pair_method("dcd", 3, 3, variant=variant), t + 1, t)["dcd"]
        assert torch.isfinite(found)
        assert float(found) > 0


def test_levels_below_one_are_refused() -> None:
    from medkd.core.errors import MethodError

    with pytest.raises(MethodError, match="at least 1, found 0"):
        pair_method("dcd", 3, 3, levels=0)
