"""IFVD against loops over samples, classes and voxels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Target
from tests.distillation.toys import features_terms, pair_method


def cosines(features: Tensor, groups: Tensor) -> dict[tuple[int, int], float]:
    """Per sample and voxel, the cosine to the mean of its group; voxels of group −1 are left out."""
    found = {}
    for n, (sample, group) in enumerate(zip(features.flatten(2), groups.flatten(1), strict=True)):
        for v, g in enumerate(group.tolist()):
            if g >= 0:
                mean = sample[:, group == g].mean(1)
                found[n, v] = float(F.cosine_similarity(sample[:, v], mean, dim=0))
    return found


def mean_square(s: Tensor, t: Tensor, groups: Tensor) -> float:
    """Mean squared difference of the cosines."""
    a, b = cosines(s, groups), cosines(t, groups)
    return sum((a[k] - b[k]) ** 2 for k in a) / len(a)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("variant", "weight"), [("default", 10.0), ("paper", 200.0)])
def test_classes_equal_a_loop(masked: bool, variant: str, weight: float) -> None:
    s, t = torch.randn(2, 4, 3, 4, 3), torch.randn(2, 5, 3, 4, 3)
    labels, valid = torch.randint(0, 3, (2, 1, 3, 4, 3)), torch.rand(2, 1, 3, 4, 3) > 0.3
    groups = torch.where(valid, labels, -1)[:, 0] if masked else labels[:, 0]
    found = features_terms(pair_method("ifvd", 4, 5, variant=variant), s, t, Target(labels, valid if masked else None))[
        "ifvd"
    ]
    assert float(found) == pytest.approx(weight * mean_square(s, t, groups), rel=1e-4)


def test_regions_have_an_inside_and_an_outside_each() -> None:
    s, t, labels = torch.randn(2, 4, 5, 4), torch.randn(2, 5, 5, 4), (torch.rand(2, 3, 5, 4) > 0.5).float()
    found = features_terms(pair_method("ifvd", 4, 5, 2, regions=True, weight=1.0), s, t, Target(labels))["ifvd"]
    expected = sum(mean_square(s, t, labels[:, k].long()) for k in range(3)) / 3
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_labels_and_the_teacher_come_to_the_students_size() -> None:
    s, t, labels = torch.randn(1, 4, 3, 4, 5), torch.randn(1, 5, 6, 8, 10), torch.randint(0, 3, (1, 1, 12, 16, 20))
    found = features_terms(pair_method("ifvd", 4, 5, weight=1.0), s, t, Target(labels))["ifvd"]
    small = F.interpolate(t, size=(3, 4, 5), mode="trilinear", align_corners=False)
    assert float(found) == pytest.approx(mean_square(s, small, labels[:, 0, ::4, ::4, ::4]), rel=1e-4)


def test_distribution_term_is_kd() -> None:
    z, f = torch.randn(2, 2, 3, 4, 4, 4), torch.randn(2, 4, 4, 4, 4)
    expected = F.kl_div(torch.log_softmax(z[0], 1), torch.softmax(z[1], 1), reduction="none").sum(1).mean()
    for variant, weight in (("default", 1.0), ("paper", 10 / 3)):
        found = features_terms(pair_method("ifvd", 4, 4, variant=variant), f, f, logits=z)
        assert torch.allclose(found["ifvd_kd"], weight * expected, rtol=1e-4)
