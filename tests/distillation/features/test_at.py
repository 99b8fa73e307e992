"""Attention transfer against the formula written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Outputs, Target
from tests.distillation.toys import features_terms, pair_method


def distance(s: Tensor, t: Tensor, mean: bool) -> float:
    """Squared distance of the unit maps, sample by sample."""
    found = []
    for a, b in zip(s, t, strict=True):
        q_s, q_t = (f.square().mean(0) / f.square().mean(0).norm() for f in (a, b))
        found.append(float((q_s - q_t).square().mean() if mean else (q_s - q_t).square().sum()))
    return sum(found) / len(found)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("size", [6, 12])
def test_equals_the_formula_written_out(rank: int, size: int) -> None:
    s, t = torch.randn(2, 4, *(6,) * rank), torch.randn(2, 5, *(size,) * rank)
    logits = torch.randn(2, 2, 3, *(7,) * rank)
    small = F.interpolate(t, size=(6,) * rank, mode="nearest")
    target = Target(torch.zeros(2, 1, *(7,) * rank))
    for variant, mean, scale in (("default", False, 0.125), ("paper", True, 200.0)):
        method = pair_method("at", 4, 5, rank, variant=variant)
        expected = scale * (distance(s, small, mean) + distance(logits[0], logits[1], mean))
        assert float(features_terms(method, s, t, target, logits)["at"]) == pytest.approx(expected, rel=1e-4)


def test_logits_can_be_left_out() -> None:
    s, t = torch.randn(2, 4, 6, 6), torch.randn(2, 5, 6, 6)
    method = pair_method("at", 4, 5, 2, logits=False, weight=3.0)
    found = method(
        Outputs(logits=torch.randn(2, 3, 6, 6), features={"s": s}),
        Outputs(logits=torch.randn(2, 3, 6, 6), features={"t": t}),
        Target(torch.zeros(1)),
    )
    assert float(found["at"]) == pytest.approx(3 * distance(s, t, False), rel=1e-4)


def test_the_papers_scale_fades_with_the_patch_and_the_default_does_not() -> None:
    small = torch.rand(1, 4, 4, 4, 4), torch.rand(1, 4, 4, 4, 4)
    large = [x.repeat(1, 1, 2, 2, 2) for x in small]
    for variant, factor in (("default", 1.0), ("paper", 1 / 8)):
        method = pair_method("at", 4, 4, logits=False, variant=variant)
        once, repeated = (float(features_terms(method, *pair)["at"]) for pair in (small, large))
        assert repeated == pytest.approx(once * factor, rel=1e-4)
