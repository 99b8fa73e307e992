"""Half precision is warned of where torch computes known convolutions wrong in it, or more slowly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from medkd.core import arithmetic
from medkd.core.arithmetic import wrong_arithmetic

CPU = torch.device("cpu")
LARGE = (10, 14, 10)  # which every build computes right; this one may be wrong on smaller ones


@pytest.fixture(autouse=True)
def not_yet_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(arithmetic, "_MAPS", (LARGE,))
    asked = (arithmetic._wrong_maps, arithmetic.half_cost)
    for answer in asked:
        answer.cache_clear()
    yield
    for answer in asked:
        answer.cache_clear()


def test_right_convolutions_are_let_through_and_nothing_global_moves() -> None:
    numbers = torch.get_rng_state()
    with torch.inference_mode():
        assert not wrong_arithmetic("bf16", CPU) and not wrong_arithmetic("bf16", CPU, training=False)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert 1e-4 < arithmetic._error(LARGE, True) < 0.01  # what rounding to eight bits gives


@pytest.mark.parametrize("wrong", [0.0, float("nan"), 1e30])
def test_one_wrong_gradient_is_told_of_trainings(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
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
    assert not wrong_arithmetic("fp32", CPU) and not wrong_arithmetic("bf16", torch.device("cuda"))
    assert not wrong_arithmetic("bf16", CPU, training=False)
    told = wrong_arithmetic("bf16", CPU)
    assert "computes convolutions of feature maps of 10 x 14 x 10 voxels wrong in bf16" in told


def test_wrong_outputs_are_told_of_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    own = F.conv3d
    monkeypatch.setattr(
        F, "conv3d", lambda x, w, padding: own(x, w, padding=padding) * (1 + torch.is_autocast_enabled("cpu"))
    )
    assert wrong_arithmetic("bf16", CPU, training=False).endswith("use --precision fp32")


def slower(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let half precision take a multiple of fp32's processor time, on a clock that only the convolutions move."""
    clock = [0.0]
    own = arithmetic._computed

    def computed(x: torch.Tensor, weight: torch.Tensor, slope: torch.Tensor, half: torch.dtype | None) -> object:
        clock[0] += 1.0 if half is None else float(times)
        return own(x, weight, slope, None)

    monkeypatch.setattr(arithmetic, "_computed", computed)
    monkeypatch.setattr(arithmetic.time, "process_time", lambda: clock[0])


def test_half_precision_that_is_slower_is_told_and_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    slower(monkeypatch, 20)
    assert arithmetic.chosen_precision("auto", CPU) == "fp32"
    for precision in ("bf16", "fp16"):
        told = arithmetic.slow_arithmetic(precision, CPU)
        assert told.startswith(f"this processor is slow in {precision}: ") and "takes 20.0 times as long" in told
        assert not arithmetic.slow_arithmetic(precision, torch.device("cuda"))
    assert arithmetic.chosen_precision("bf16", CPU) == "bf16"  # what is asked for is taken
    assert not arithmetic.slow_arithmetic("fp32", CPU)


def test_half_precision_that_is_faster_is_chosen_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "half_cost", lambda precision: 0.54)
    assert arithmetic.chosen_precision("auto", CPU) == "bf16" and arithmetic.chosen_precision(None, CPU) == "fp32"
    assert not arithmetic.slow_arithmetic("bf16", CPU)
    assert arithmetic.chosen_precision("auto", torch.device("cuda")) == "fp16"
    assert arithmetic.chosen_precision("auto", torch.device("mps")) == "fp32"
