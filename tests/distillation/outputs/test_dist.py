"""DIST against NumPy's correlation coefficients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medkd.core.features import Target
from tests.distillation.toys import logits_terms


@pytest.mark.parametrize("variant", ["default", "paper"])
@pytest.mark.parametrize("masked", [False, True])
def test_classes_equal_numpys_correlations(variant: str, masked: bool) -> None:
    s, t = torch.randn(2, 4, 3, 5, 2), torch.randn(2, 4, 3, 5, 2)
    labels = torch.randint(0, 3, (2, 1, 3, 5, 2))  # class 3 is absent
    valid = torch.rand(2, 1, 3, 5, 2) > 0.3
    tau = 4.0 if variant == "paper" else 1.0
    keep = valid[:, 0].numpy() if masked else np.ones((2, 3, 5, 2), bool)
    p_s, p_t = (torch.softmax(z.double() / tau, 1).movedim(1, -1).numpy()[keep] for z in (s, t))
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p_s, p_t, strict=True)])
    columns = range(4) if variant == "paper" else range(3)
    intra = np.mean([1 - np.corrcoef(p_s[:, c], p_t[:, c])[0, 1] for c in columns])
    found = logits_terms("dist", s, t, Target(labels, valid if masked else None), variant=variant, beta=2.0, gamma=0.5)
    assert float(found["dist_inter"]) == pytest.approx(2.0 * tau**2 * inter, rel=1e-4)
    assert float(found["dist_intra"]) == pytest.approx(0.5 * tau**2 * intra, rel=1e-4)


def test_regions_have_relations_among_voxels_only() -> None:
    s, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    labels = torch.zeros(2, 3, 4, 4)
    labels[:, :2, :2] = 1  # the third region is absent
    p_s, p_t = (torch.sigmoid(z).movedim(1, 0).flatten(1).numpy() for z in (s, t))
    expected = np.mean([1 - np.corrcoef(p_s[c], p_t[c])[0, 1] for c in range(2)])
    found = logits_terms("dist", s, t, Target(labels), regions=True)
    assert set(found) == {"dist_intra"} and float(found["dist_intra"]) == pytest.approx(expected, rel=1e-4)
    assert float(logits_terms("dist", s, t, Target(torch.zeros(2, 3, 4, 4)), regions=True)["dist_intra"]) == 0.0


def test_probabilities_that_do_not_vary_give_finite_gradient() -> None:
    s = torch.zeros(1, 3, 4, 4, requires_grad=True)
    terms = logits_terms("dist", s, torch.randn(1, 3, 4, 4), Target(torch.zeros(1, 1, 4, 4, dtype=torch.long)))
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert s.grad is not None and torch.isfinite(s.grad).all()
