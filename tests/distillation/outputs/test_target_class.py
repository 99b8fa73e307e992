"""What NKD and DKD share: sure networks, two classes, and no regions."""

from __future__ import annotations

import pytest
import torch

from medkd.core.errors import MethodError
from medkd.core.features import Target
from medkd.distillation import build_method
from tests.distillation.rows import tiny
from tests.distillation.toys import logits_terms, plain_context


@pytest.mark.parametrize("name", ["nkd", "dkd"])
def test_sure_networks_give_finite_gradient(name: str) -> None:
    s = torch.zeros(1, 3, 2, 2)
    s[:, 0] = 300.0
    s.requires_grad_()
    loss = sum(logits_terms(name, s, -s.detach(), Target(torch.zeros(1, 1, 2, 2, dtype=torch.long))).values())
    loss.backward()  # type: ignore[union-attr]
    assert s.grad is not None and torch.isfinite(s.grad).all() and torch.isfinite(torch.as_tensor(loss))


@pytest.mark.parametrize("name", ["nkd", "dkd"])
def test_with_two_classes_there_is_nothing_to_learn_about_the_others(name: str) -> None:
    s, t, target = tiny(2)
    assert float(logits_terms(name, s, t, target)[f"{name}_others"]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["nkd", "dkd"])
def test_regions_are_refused_with_a_reason(name: str) -> None:
    with pytest.raises(MethodError, match=f"{name} teaches the true class and the others apart; regions may overlap"):
        build_method(name, plain_context(regions=True))
