"""Batch normalisation over the samples of several processes, against torch's over all samples in one."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch

from medkd.training.ranks import Ranks
from medkd.training.shared_norm import share_norms


@dataclass(frozen=True, kw_only=True)
class _Twins(Ranks):
    """Two processes that have the same samples, so that every sum is twice the own part."""

    def sum(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers.mul_(2)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", ["torch", "timm"])
def test_batch_normalisation_is_that_of_the_whole_batch(kind: str, momentum: float | None) -> None:
    torch.manual_seed(0)
    if kind == "timm":
        made = pytest.importorskip("timm.layers").BatchNormAct2d(3, momentum=momentum or 0.2)
    else:
        made = torch.nn.BatchNorm2d(3, momentum=momentum)
    expected, found = copy.deepcopy(made).double(), made.double()
    share_norms(found, _Twins(count=2))
    weight = torch.randn(2, 3, 4, 5, dtype=torch.double)
    for _ in range(2):
        x = torch.randn(2, 3, 4, 5, dtype=torch.double)
        own, whole = x.clone().requires_grad_(), torch.cat([x, x]).requires_grad_()
        ours, theirs = found(own), expected(whole)
        torch.testing.assert_close(ours, theirs[:2])
        (ours.square() * weight).sum().backward()
        (theirs.square() * weight.repeat(2, 1, 1, 1)).sum().backward()
        assert own.grad is not None and whole.grad is not None
        torch.testing.assert_close(own.grad, whole.grad[:2])
    torch.testing.assert_close(found.state_dict(), expected.state_dict())
    torch.testing.assert_close(found.eval()(own), expected.eval()(own))
