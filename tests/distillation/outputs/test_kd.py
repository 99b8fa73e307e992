"""KD against a loop over voxels."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import pytest
import torch

from medkd.core.features import Target
from medkd.distillation.outputs.kd import KD
from tests.distillation.toys import batch, logits_terms, patch, plain_context


def softmax(row: list[float]) -> list[float]:
    """Plain softmax."""
    high = max(row)
    powers = [exp(r - high) for r in row]
    return [p / sum(powers) for p in powers]


def sigmoid(x: float) -> float:
    """Plain sigmoid."""
    return 1 / (1 + exp(-x))


def tiny() -> tuple[torch.Tensor, torch.Tensor, Target]:
    """Logits of two samples and three channels, with some voxels not annotated."""
    valid = torch.rand(2, 1, 3, 2, 2) > 0.3
    labels = torch.randint(0, 3, (2, 1, 3, 2, 2))
    return (
        torch.randn(2, 3, 3, 2, 2, dtype=torch.float64),
        torch.randn(2, 3, 3, 2, 2, dtype=torch.float64),
        Target(labels, valid),
    )


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_softmax_form_equals_a_loop(temperature: float) -> None:
    s, t, target = tiny()
    assert target.valid is not None
    keep = target.valid.flatten().tolist()
    rows = [x.movedim(1, -1).reshape(-1, 3).tolist() for x in (s, t)]
    total = 0.0
    for row_s, row_t, counted in zip(*rows, keep, strict=True):
        p_s, p_t = (softmax([v / temperature for v in row]) for row in (row_s, row_t))
        total += counted * sum(b * log(b / a) for a, b in zip(p_s, p_t, strict=True))
    expected = 0.7 * temperature**2 * total / sum(keep)
    assert float(logits_terms("kd", s, t, target, weight=0.7, temperature=temperature)["kd"]) == pytest.approx(
        expected, rel=1e-5
    )
    paper = float(logits_terms("kd", s, t, target, temperature=temperature, variant="paper")["kd"])
    assert paper == pytest.approx(10 * total / sum(keep) / 3, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_region_form_equals_a_loop(temperature: float) -> None:
    s, t, target = tiny()
    assert target.valid is not None
    keep = target.valid.expand_as(s).flatten().tolist()
    total, squares = 0.0, 0.0
    for a, b, counted in zip(s.flatten().tolist(), t.flatten().tolist(), keep, strict=True):
        p_s, p_t = sigmoid(a / temperature), sigmoid(b / temperature)
        total += counted * (p_t * log(p_t / p_s) + (1 - p_t) * log((1 - p_t) / (1 - p_s)))
        squares += counted * (p_s - p_t) ** 2
    settings = {"regions": True, "temperature": temperature}
    expected = 0.25 * temperature**2 * total / (sum(keep) / 3)
    assert float(logits_terms("kd", s, t, target, **settings)["kd"]) == pytest.approx(expected, rel=1e-5)
    assert float(logits_terms("kd", s, t, target, **settings, variant="paper")["kd"]) == pytest.approx(
        10 * squares / sum(keep), rel=1e-5
    )


def test_detectors_keep_the_weight_of_one() -> None:
    weights = [KD(replace(plain_context(2), task=task)).weight for task in ("segmentation", "detection")]  # type: ignore[arg-type]
    assert weights == [0.25, 1.0]


def test_the_default_does_not_depend_on_patch_or_batch_size() -> None:
    s, t = torch.randn(1, 3, *patch(3)), torch.randn(1, 3, *patch(3))
    target = batch(3)[1]
    once = logits_terms("kd", s, t, target)["kd"]
    many = logits_terms("kd", s.repeat(3, 1, 2, 1, 2), t.repeat(3, 1, 2, 1, 2), target)["kd"]
    assert torch.allclose(once, many)


def test_saturated_logits_stay_finite() -> None:
    s, t = torch.full((1, 2, 4, 4), -200.0), torch.full((1, 2, 4, 4), 200.0)
    s[:, 0] = 200.0
    for regions in (False, True):
        assert torch.isfinite(logits_terms("kd", s, t, batch(2)[1], regions=regions)["kd"])
