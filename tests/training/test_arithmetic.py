"""bf16 is warned of where torch computes known convolutions wrong in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from medkd.training import arithmetic
from medkd.training.arithmetic import check_arithmetic

CPU = torch.device("cpu")
LARGE = (10, 14, 10)  # which every build computes right; this one may be wrong on smaller ones


@pytest.fixture(autouse=True)
def not_yet_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(arithmetic, "_MAPS", (LARGE,))
    arithmetic._wrong_maps.cache_clear()
    yield
    arithmetic._wrong_maps.cache_clear()


def test_right_convolutions_are_let_through_and_nothing_global_moves(caplog: pytest.LogCaptureFixture) -> None:
    numbers = torch.get_rng_state()
    check_arithmetic("bf16", CPU)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not caplog.records
    assert 1e-4 < arithmetic._error(LARGE) < 0.01  # what rounding to eight bits gives


@pytest.mark.parametrize("wrong", [0.0, float("nan"), 1e30])
def test_one_wrong_gradient_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrong: float
) -> None:
    own = F.conv3d

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(context: object, weight: torch.Tensor) -> torch.Tensor:
            return weight.clone()

        @staticmethod
        def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
            return torch.full_like(gradient, wrong)

    def broken(x: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
        return own(x, Wrong.apply(weight) if torch.is_autocast_enabled("cpu") else weight, padding=padding)

    monkeypatch.setattr(F, "conv3d", broken)
    with caplog.at_level(logging.WARNING):
        check_arithmetic("fp32", CPU)
        check_arithmetic("bf16", torch.device("cuda"))
        assert not caplog.records
        check_arithmetic("bf16", CPU)
    assert "computes convolutions of feature maps of 10 x 14 x 10 voxels wrong in bf16" in caplog.text
