"""Terms that teach a YOLO detector nothing are said after the first epoch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medkd.core.features import Progress
from medkd.detection.yolo.watch import FirstEpoch


def terms_of(network: nn.Linear) -> dict[str, Tensor]:
    """One that teaches, one that is 0, one whose gradient is, and one that is cut off."""
    out = network(torch.ones(1, 2))
    return {"good": out.square().sum(), "nothing": out.sum() * 0, "flat": out.sum() * 0 + 3, "cut": torch.tensor(2.0)}


def test_silent_terms_are_said_once() -> None:
    network = nn.Linear(2, 1)
    said: list[str] = []
    watch = FirstEpoch(network, said.append)
    for step in range(5):
        watch.after_terms(terms_of(network), Progress(0, 2, step))
    watch.after_terms(terms_of(network), Progress(1, 2, 5))
    means = {name: float(value.detach()) for name, value in terms_of(network).items()}
    watch.after_epoch(0, {"box_loss": 0.0, **means})
    assert [text.split("'")[1] for text in said] == ["cut", "flat", "nothing"]
    watch.after_epoch(1, means)
    assert len(said) == 3


def test_a_graph_is_walked_in_the_first_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[object] = []

    def walk(terms: object, *others: object) -> dict[str, float]:
        walked.append(terms)
        return {}

    monkeypatch.setattr("medkd.detection.yolo.watch.gradient_norms", walk)
    watch = FirstEpoch(nn.Linear(2, 1), lambda text: None)
    for step in range(8):
        watch.after_terms({}, Progress(step // 4, 2, step))
    assert len(walked) == 3
