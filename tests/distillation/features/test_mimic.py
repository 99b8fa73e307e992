"""Feature imitation against the formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medkd.distillation.features.mimic import Mimic
from tests.distillation.toys import features_terms, pair_method


def test_default_is_relative_to_the_teachers_variance_and_the_paper_is_not() -> None:
    s, t = torch.randn(2, 4, 5, 6, 4), 7 * torch.randn(2, 5, 5, 6, 4) + 1
    for variant in ("default", "paper"):
        method = pair_method("mimic", 4, 5, variant=variant, weight=2.0)
        assert isinstance(method, Mimic)
        layer = method.adapters[0]
        assert isinstance(layer, nn.Conv3d) and layer.bias is not None
        adapted = torch.einsum("oc,bcxyz->boxyz", layer.weight[:, :, 0, 0, 0], s) + layer.bias.view(1, -1, 1, 1, 1)
        expected = (
            2 * float((adapted - t).square().mean()) / (1.0 if variant == "paper" else float(t.var(unbiased=False)))
        )
        assert float(features_terms(method, s, t)["mimic"]) == pytest.approx(expected, rel=1e-4)


def test_the_scale_of_a_teacher_does_not_matter_by_default() -> None:
    s, t = torch.randn(2, 5, 6, 6), torch.randn(2, 5, 6, 6)
    method = pair_method("mimic", 5, 5, 2)
    assert torch.allclose(
        features_terms(method, s, t)["mimic"], features_terms(method, 10 * s, 10 * t)["mimic"], rtol=1e-4
    )


def test_the_paper_always_adapts_and_the_default_only_where_channels_differ() -> None:
    assert [len(list(pair_method("mimic", 4, 4, variant=v).parameters())) for v in ("default", "paper")] == [0, 2]


def test_a_student_map_of_another_size_is_brought_to_the_teachers() -> None:
    s, t = torch.ones(1, 4, 3, 3), torch.ones(1, 4, 6, 6)
    assert float(features_terms(pair_method("mimic", 4, 4, 2), s, t)["mimic"]) == 0.0
