"""PKD is a correlation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medkd.distillation.features.pkd import PKD
from tests.distillation.toys import ToyNetwork, batch, context, features_terms, pair_method, step, trained


def test_equals_one_minus_numpys_correlation_of_every_channel() -> None:
    s, t = torch.randn(2, 4, 5, 6, 4), torch.randn(2, 4, 5, 6, 4)
    rows = [x.double().transpose(0, 1).flatten(1).numpy() for x in (s, t)]
    number = rows[0].shape[1]
    expected = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(*rows, strict=True)]) * (number - 1) / number
    assert float(features_terms(pair_method("pkd", 4, 4), s, t)["pkd"]) == pytest.approx(expected, rel=1e-4)
    assert float(features_terms(pair_method("pkd", 4, 4, variant="paper"), s, t)["pkd"]) == pytest.approx(
        6 * expected, rel=1e-4
    )


def test_scale_and_offset_of_channels_do_not_matter() -> None:
    s = torch.randn(2, 4, 5, 5)
    t = s * torch.tensor([1.0, 2.0, 30.0, 0.1]).view(1, 4, 1, 1) + torch.randn(1, 4, 1, 1)
    assert float(features_terms(pair_method("pkd", 4, 4, 2), s, t)["pkd"]) < 1e-5


def test_default_is_the_mean_over_levels_and_the_paper_the_sum() -> None:
    from medkd.distillation import build_method

    student, teacher = ToyNetwork(3, 6, additive=False), trained(3, False)
    about = context(student, teacher, 3)
    image, target = batch(3)
    default, paper = (build_method("pkd", about, {"pkd.variant": v}) for v in ("default", "paper"))
    assert isinstance(default, PKD) and len(default.pairs) == 2
    one, other = (step(m, student, teacher, image, target)["pkd"] for m in (default, paper))
    assert torch.allclose(other, 2 * 6 * one, rtol=1e-4)
