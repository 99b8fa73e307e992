"""EMKD against loops over class pairs and voxels."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Target
from tests.distillation.toys import features_terms, pair_method


def affinity(s: Tensor, t: Tensor, masks: list[Tensor], paper: bool) -> float:
    """Per image the squared differences of the cosines between the mean features of all pairs of masks ``(B,
    *spatial)`` that it has; the mean over images.
    """
    images = []
    for n in range(len(s)):
        found = []
        for a, b in itertools.combinations([m[n] for m in masks if m[n].any()], 2):
            cosines = []
            for features in (s[n].movedim(0, -1), t[n].movedim(0, -1)):
                cosines.append(F.cosine_similarity(features[a].mean(0), features[b].mean(0), dim=0))
            found.append(float((cosines[0] - cosines[1]) ** 2))
        images.append(sum(found) if paper else sum(found) / max(len(found), 1))
    return sum(images) / len(images)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("variant", ["default", "paper"])
def test_affinity_of_classes_equals_a_loop(variant: str, masked: bool) -> None:
    s, t, labels = torch.randn(2, 4, 3, 4, 3), torch.randn(2, 5, 3, 4, 3), torch.randint(0, 3, (2, 1, 3, 4, 3))
    valid = torch.rand(2, 1, 3, 4, 3) > 0.3
    masks = [(labels[:, 0] == k) & (valid[:, 0] | (not masked)) for k in range(3)]
    found = features_terms(pair_method("emkd", 4, 5, variant=variant), s, t, Target(labels, valid if masked else None))
    assert float(found["emkd_affinity"]) == pytest.approx(0.9 * affinity(s, t, masks, variant == "paper"), rel=1e-4)


def test_an_absent_class_takes_no_part() -> None:
    s, t = torch.randn(1, 4, 4, 4), torch.randn(1, 5, 4, 4)
    labels = torch.zeros(1, 1, 4, 4, dtype=torch.long)
    labels[..., :2] = 2
    masks = [labels[:, 0] == 0, labels[:, 0] == 2]
    found = features_terms(pair_method("emkd", 4, 5, 2), s, t, Target(labels))["emkd_affinity"]
    assert float(found) == pytest.approx(0.9 * affinity(s, t, masks, False), rel=1e-4)
    assert (
        float(features_terms(pair_method("emkd", 4, 5, 2), s, t, Target(torch.zeros_like(labels)))["emkd_affinity"])
        == 0.0
    )


def test_regions_are_compared_with_each_other_and_with_what_is_in_none() -> None:
    s, t, labels = torch.randn(2, 4, 4, 4), torch.randn(2, 5, 4, 4), (torch.rand(2, 3, 4, 4) > 0.6).float()
    masks = [labels[:, k] > 0 for k in range(3)] + [~(labels > 0).any(1)]
    found = features_terms(pair_method("emkd", 4, 5, 2, regions=True), s, t, Target(labels))["emkd_affinity"]
    assert float(found) == pytest.approx(0.9 * affinity(s, t, masks, False), rel=1e-4)


def test_importance_maps_are_fourth_powers_of_unit_norm() -> None:
    s, t = torch.randn(2, 4, 4, 4), torch.randn(2, 5, 8, 8)
    up = s.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = 0.0
    for a, b in zip(up, t, strict=True):
        maps = [(f**4).mean(0) for f in (a, b)]
        expected += float((maps[0] / maps[0].norm() - maps[1] / maps[1].norm()).square().sum()) / 2
    assert float(features_terms(pair_method("emkd", 4, 5, 2), s, t)["emkd_importance"]) == pytest.approx(
        0.1 * expected, rel=1e-4
    )


def test_prediction_term_has_the_papers_temperature_and_scale() -> None:
    z, f = torch.randn(2, 2, 3, 4, 4), torch.randn(2, 4, 4, 4)
    for variant, tau, weight in (("default", 1.0, 1.0), ("paper", 4.0, 0.1)):
        divergence = (
            F.kl_div(torch.log_softmax(z[0] / tau, 1), torch.softmax(z[1] / tau, 1), reduction="none").sum(1).mean()
        )
        found = features_terms(pair_method("emkd", 4, 4, 2, variant=variant), f, f, logits=z)["emkd_prediction"]
        assert torch.allclose(found, weight * tau**2 * divergence, rtol=1e-4)
