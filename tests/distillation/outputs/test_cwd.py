"""CWD against a loop over channels and voxels."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from medkd.core.features import Target
from tests.distillation.toys import batch, logits_terms, patch


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_a_loop(regions: bool, masked: bool) -> None:
    s, t = torch.randn(2, 3, 3, 4), torch.randn(2, 3, 3, 4)
    valid = torch.rand(2, 1, 3, 4) > 0.3
    keep = valid if masked else torch.ones_like(valid)
    temperature, total = 1.5, 0.0
    for n in range(2):
        places = keep[n, 0].flatten().nonzero().flatten().tolist()
        for c in range(3):
            maps = [[exp(float(z[n, c].flatten()[v]) / temperature) for v in places] for z in (s, t)]
            p_s, p_t = ([m / sum(values) for m in values] for values in maps)
            total += sum(b * log(b / a) for a, b in zip(p_s, p_t, strict=True))
    target = Target(torch.zeros(2, 1, 3, 4, dtype=torch.long), valid if masked else None)
    found = logits_terms("cwd", s, t, target, regions=regions, temperature=temperature, weight=2.0)["cwd"]
    assert float(found) == pytest.approx(2 * temperature**2 * total / 6, rel=1e-4)


def test_the_papers_weight_is_three_at_temperature_four() -> None:
    s, t, target = torch.randn(1, 3, *patch(3)), torch.randn(1, 3, *patch(3)), batch(3)[1]
    paper = logits_terms("cwd", s, t, target, variant="paper")["cwd"]
    assert torch.allclose(paper, logits_terms("cwd", s, t, target, weight=3, temperature=4)["cwd"])


def test_a_shift_of_a_channel_changes_nothing() -> None:
    s, t, target = torch.randn(1, 3, *patch(3)), torch.randn(1, 3, *patch(3)), batch(3)[1]
    shifted = logits_terms("cwd", s + torch.tensor([5.0, -3.0, 1.0]).view(1, 3, 1, 1, 1), t, target)["cwd"]
    assert torch.allclose(shifted, logits_terms("cwd", s, t, target)["cwd"], rtol=1e-4)


def test_the_default_does_not_depend_on_patch_or_batch_size() -> None:
    s, t, target = torch.randn(1, 3, *patch(3)), torch.randn(1, 3, *patch(3)), batch(3)[1]
    many = logits_terms("cwd", s.repeat(2, 1, 2, 1, 2), t.repeat(2, 1, 2, 1, 2), target)["cwd"]
    assert torch.allclose(many, logits_terms("cwd", s, t, target)["cwd"], rtol=1e-4)


def test_a_sample_without_any_annotation_gives_zero_not_nan() -> None:
    s, t = torch.randn(1, 3, 4, 4, requires_grad=True), torch.randn(1, 3, 4, 4)
    target = Target(torch.zeros(1, 1, 4, 4, dtype=torch.long), torch.zeros(1, 1, 4, 4, dtype=torch.bool))
    loss = logits_terms("cwd", s, t, target)["cwd"]
    loss.backward()
    assert float(loss) == 0.0 and s.grad is not None and torch.equal(s.grad, torch.zeros_like(s))
