"""A teacher map without spread teaches little, and does not make a loss of millions."""

from __future__ import annotations

import pytest
import torch

from medkd.distillation import METHODS, Method, parameters_of
from medkd.distillation.features.standardize import SHARE, spread
from tests.distillation.toys import features_terms, pair_method

COMPARING = [name for name in METHODS if "taps" in parameters_of(METHODS[name]) and name != "crosskd"]
MOST = 1000.0


def ready(name: str) -> Method:
    """A method between maps of 4 and 5 channels, as if its first stage had run."""
    method = pair_method(name, 4, 5, 2)
    if hasattr(method, "prepared"):
        method.prepared.fill_(True)  # type: ignore[operator]
    return method


@pytest.mark.parametrize("value", [0.0, 1e-6, 3.0, 1e4])
@pytest.mark.parametrize("name", COMPARING)
def test_losses_and_gradients_of_constant_teacher_maps_are_bounded(name: str, value: float) -> None:
    torch.manual_seed(0)
    s = torch.randn(2, 4, 8, 8, requires_grad=True)
    labels_free = features_terms(ready(name), s, torch.full((2, 5, 8, 8), value))
    total = torch.stack(list(labels_free.values())).sum()
    assert abs(float(total.detach())) < MOST
    total.backward()
    assert s.grad is None or (bool(torch.isfinite(s.grad).all()) and float(s.grad.abs().max()) < MOST)


def test_the_spread_is_the_variance_except_for_nearly_constant_maps() -> None:
    s, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(spread(t, s), t.var(unbiased=False))
    assert torch.allclose(spread(torch.full_like(t, 5.0), s), torch.tensor(SHARE * 25))
    assert torch.allclose(spread(torch.zeros_like(t), s), SHARE * s.square().mean())
    assert float(spread(torch.zeros_like(t), torch.zeros_like(t))) > 0
