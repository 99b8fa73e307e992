"""CAKD against a loop over classes."""

from __future__ import annotations

import pytest
import torch

from medkd.core.features import Target
from tests.distillation.toys import logits_terms


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_a_loop(regions: bool, masked: bool) -> None:
    s, t, valid = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5), torch.rand(2, 1, 3, 5) > 0.3
    found = []
    for n in range(2):
        affinities = []
        for z in (s, t):
            p = torch.sigmoid(z[n]) if regions else torch.softmax(z[n], 0)
            rows = p.flatten(1)[:, valid[n].flatten()] if masked else p.flatten(1)
            affinities.append([[float(a @ b) for b in rows] for a in rows])
        g_s, g_t = (torch.tensor(g) for g in affinities)
        found.append(sum(float(g_s[:, c] @ g_t[:, c] / (g_s[:, c].norm() * g_t[:, c].norm())) for c in range(4)) / 4)
    target = Target(torch.zeros(2, 1, 3, 5, dtype=torch.long), valid if masked else None)
    likeness = sum(found) / 2
    assert float(logits_terms("cakd", s, t, target, regions=regions)["cakd"]) == pytest.approx(
        0.1 * (1 - likeness), rel=1e-3
    )
    assert float(logits_terms("cakd", s, t, target, regions=regions, variant="paper")["cakd"]) == pytest.approx(
        -0.1 * likeness, rel=1e-4
    )
