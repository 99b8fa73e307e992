"""Standardised features."""

from __future__ import annotations

import torch

from medkd.distillation.features.standardize import channel_statistics, standardize


def test_statistics_are_per_channel_over_batch_and_space() -> None:
    x = torch.randn(3, 4, 5, 6) * 7 + 2
    mean, std = channel_statistics(x)
    rows = x.transpose(0, 1).flatten(1)
    assert torch.allclose(mean.flatten(), rows.mean(1), atol=1e-5) and torch.allclose(
        std.flatten(), rows.std(1), rtol=1e-5
    )


def test_a_constant_channel_gives_zeros_and_finite_gradient() -> None:
    x = torch.ones(2, 3, 4, 4, requires_grad=True)
    y = standardize(x)
    (y * torch.randn_like(y)).sum().backward()
    assert not y.detach().any() and x.grad is not None and torch.isfinite(x.grad).all()
