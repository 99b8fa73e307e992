"""Only devices that are there, and that networks run on, are taken."""

from __future__ import annotations

import pytest
import torch

from medkd.core.device import pick_device
from medkd.core.errors import RunError
from medkd.detection import models as detection
from medkd.inference import predictor
from medkd.training import teacher_scores


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without any accelerator."""
    _has(monkeypatch, cuda=0, mps=False)
    return monkeypatch


def _has(monkeypatch: pytest.MonkeyPatch, *, cuda: int, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_cuda_is_chosen_where_it_is_present(machine: pytest.MonkeyPatch) -> None:
    assert pick_device(None) == torch.device("cpu")
    _has(machine, cuda=1, mps=True)
    assert pick_device(None) == torch.device("cuda")


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1", "mps"])
def test_what_is_there_is_taken(machine: pytest.MonkeyPatch, name: str) -> None:
    _has(machine, cuda=2, mps=True)
    assert pick_device(name) == torch.device(name) == pick_device(torch.device(name))


@pytest.mark.parametrize(
    ("name", "cuda", "message"),
    [
        ("gpu", 0, "Unknown device 'gpu'"),
        ("0,1", 2, "Expected one device, found '0,1'; give one of them; only trainings use several"),
        ("xpu", 1, "do not run on the device 'xpu'; use cpu, cuda, cuda:N or mps"),
        ("meta", 1, "do not run on the device 'meta'"),
        ("mps", 1, "'mps' was asked for, but torch sees no mps device"),
        ("cuda", 0, "'cuda' was asked for, but torch sees no cuda device"),
        ("cuda:7", 1, "'cuda:7' was asked for, but torch sees only cuda:0 here"),
        ("cuda:7", 4, "sees only cuda:0 to cuda:3 here"),
        ("cpu:3", 0, "sees only cpu:0 here"),
    ],
)
def test_what_is_not_there_is_refused(machine: pytest.MonkeyPatch, name: str, cuda: int, message: str) -> None:
    _has(machine, cuda=cuda, mps=False)
    with pytest.raises(RunError, match=message) as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)


def test_all_commands_choose_alike() -> None:
    assert detection.pick_device is predictor.pick_device is teacher_scores.pick_device is pick_device
