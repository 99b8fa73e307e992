"""NKD against a loop over voxels."""

from __future__ import annotations

from math import log

import pytest

from tests.distillation.rows import rows, softmax, tiny, without
from tests.distillation.toys import logits_terms


@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (0.7, 2.0)])
def test_nkd_equals_a_loop(gamma: float, temperature: float) -> None:
    s, t, target = tiny()
    first, second = [], []
    for z_s, z_t, true in rows(s, t, target):
        first.append(-softmax(z_t)[true] * log(softmax(z_s)[true]))
        q_s, q_t = (softmax([v / temperature for v in without(z, true)]) for z in (z_s, z_t))
        second.append(-gamma * temperature**2 * sum(b * log(a) for a, b in zip(q_s, q_t, strict=True)))
    found = logits_terms("nkd", s, t, target, gamma=gamma, temperature=temperature, weight=2.0)
    assert float(found["nkd_target"]) == pytest.approx(2 * sum(first) / len(first), rel=1e-4)
    assert float(found["nkd_others"]) == pytest.approx(2 * sum(second) / len(second), rel=1e-4)
