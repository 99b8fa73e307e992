"""DKD against a loop over voxels."""

from __future__ import annotations

from math import log

import pytest

from tests.distillation.rows import rows, softmax, tiny, without
from tests.distillation.toys import logits_terms


@pytest.mark.parametrize("variant", ["default", "paper"])
def test_dkd_equals_a_loop(variant: str) -> None:
    s, t, target = tiny()
    weight, beta, temperature = (0.1, 8.0, 4.0) if variant == "paper" else (1.0, 1.0, 1.0)
    first, second = [], []
    for z_s, z_t, true in rows(s, t, target):
        scaled = [[v / temperature for v in z] for z in (z_s, z_t)]
        a, b = (softmax(z)[true] for z in scaled)
        first.append(b * log(b / a) + (1 - b) * log((1 - b) / (1 - a)))
        q_s, q_t = (softmax(without(z, true)) for z in scaled)
        second.append(sum(y * log(y / x) for x, y in zip(q_s, q_t, strict=True)))
    scale = weight * temperature**2
    found = logits_terms("dkd", s, t, target, variant=variant)
    assert float(found["dkd_target"]) == pytest.approx(scale * sum(first) / len(first), rel=1e-4)
    assert float(found["dkd_others"]) == pytest.approx(scale * beta * sum(second) / len(second), rel=1e-4)
