"""SKD against loops over places."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medkd.core.features import Target
from medkd.distillation.relations.nodes import cells_per_axis, pool_nodes
from medkd.distillation.relations.skd import SKD
from tests.distillation.toys import features_terms, pair_method


def likeness(features: torch.Tensor, cells: tuple[int, ...]) -> list[list[list[float]]]:
    """Cosines of all pairs of places."""
    every = []
    for sample in features:
        places = F.adaptive_max_pool3d(sample, cells).flatten(1).T
        every.append([[float(F.cosine_similarity(a, b, dim=0)) for b in places] for a in places])
    return every


@pytest.mark.parametrize(
    ("settings", "cells"), [({"max_nodes": 12}, cells_per_axis((4, 6, 4), 12)), ({"variant": "paper"}, (2, 2, 2))]
)
def test_pair_term_equals_a_loop(settings: dict[str, object], cells: tuple[int, ...]) -> None:
    s, t = torch.randn(2, 4, 4, 6, 4), torch.randn(2, 5, 4, 6, 4)
    a, b = (torch.tensor(likeness(f, cells)) for f in (s, t))
    method = pair_method("skd", 4, 5, pair_weight=0.3, **settings)
    assert float(features_terms(method, s, t)["skd_pair"]) == pytest.approx(
        0.3 * float((a - b).square().mean()), rel=1e-4
    )


def test_voxel_term_is_a_divergence_and_in_the_paper_a_cross_entropy_summed_over_the_batch() -> None:
    z = torch.randn(2, 2, 3, 4, 4, 4)
    p, log_q = torch.softmax(z[1], 1), torch.log_softmax(z[0], 1)
    entropy = -(p * p.log()).sum(1)
    cross = -(p * log_q).sum(1)
    f = torch.randn(2, 4, 4, 4, 4)
    default, paper = (
        features_terms(pair_method("skd", 4, 4, variant=v), f, f, logits=z)["skd_voxel"] for v in ("default", "paper")
    )
    assert torch.allclose(default, (cross - entropy).mean(), rtol=1e-4)
    assert torch.allclose(paper, 10 * cross.sum() / 4**3, rtol=1e-4)


def test_regions_use_binary_cross_entropy() -> None:
    z, f = torch.randn(2, 2, 3, 4, 4, 4), torch.randn(2, 4, 4, 4, 4)
    q, p = torch.sigmoid(z)
    expected = 10 * 2 * -(p * q.log() + (1 - p) * (1 - q).log()).sum(1).mean()
    target = Target(torch.zeros(2, 3, 4, 4, 4))
    assert torch.allclose(
        features_terms(pair_method("skd", 4, 4, regions=True, variant="paper"), f, f, target, z)["skd_voxel"],
        expected,
        rtol=1e-4,
    )


def test_grids_are_bounded_and_even() -> None:
    for size, most, expected in (
        ((96, 96, 96), 216, (6, 6, 6)),
        ((2, 40, 40), 64, (2, 5, 6)),
        ((3, 3), 100, (3, 3)),
        ((8, 8, 8), 1, (1, 1, 1)),
    ):
        cells = cells_per_axis(size, most)
        assert sorted(cells) == sorted(expected) and torch.tensor(cells).prod() <= most


def test_pooling_takes_means_or_maxima() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert pool_nodes(x, (2, 2)).tolist() == [[[2.5, 4.5, 10.5, 12.5]]]
    assert pool_nodes(x, (2, 2), "max").tolist() == [[[5.0, 7.0, 13.0, 15.0]]]


def test_maps_of_different_size_share_the_grid() -> None:
    method = pair_method("skd", 4, 5)
    assert isinstance(method, SKD)
    assert torch.isfinite(features_terms(method, torch.randn(1, 4, 3, 4, 5), torch.randn(1, 5, 6, 8, 10))["skd_pair"])
