"""bf16 is used only where torch computes known convolutions right in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from medkd.core.errors import RunError
from medkd.training import arithmetic
from medkd.training.arithmetic import check_arithmetic

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def not_yet_asked() -> Iterator[None]:
    arithmetic._worst_error.cache_clear()
    yield
    arithmetic._worst_error.cache_clear()


def test_right_convolutions_are_let_through_and_nothing_global_moves() -> None:
    numbers = torch.get_rng_state()
    assert 1e-4 < arithmetic._worst_error() < 0.01  # what rounding to eight bits gives
    with torch.inference_mode():
        check_arithmetic("bf16", CPU)
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize("wrong", [0.0, float("nan"), 1e30])
def test_one_wrong_gradient_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    own = F.conv3d

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(context: object, weight: torch.Tensor) -> torch.Tensor:
            return weight.clone()

        @staticmethod
        def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
            return torch.full_like(gradient, wrong)

    def small_maps(x: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
        broken = torch.is_autocast_enabled("cpu") and x.shape[2:] == (2, 6, 8)
        return own(x, Wrong.apply(weight) if broken else weight, padding=padding)

    monkeypatch.setattr(F, "conv3d", small_maps)
    with pytest.raises(RunError, match=r"computes convolutions wrong in bf16 .*; use --precision fp32"):
        check_arithmetic("bf16", CPU)
    check_arithmetic("fp32", CPU)
    check_arithmetic("bf16", torch.device("cuda"))
