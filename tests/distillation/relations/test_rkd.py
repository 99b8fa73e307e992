"""RKD against loops over pairs and triples."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.distillation.relations.rkd import angle_cosines, relative_distances
from tests.distillation.toys import features_terms, pair_method


def embeddings(features: Tensor) -> Tensor:
    """Cells of two per axis, all samples together."""
    return torch.cat([F.avg_pool2d(f[None], 3)[0].flatten(1).T for f in features])


def distances(e: Tensor) -> Tensor:
    """Distances over their mean above zero."""
    d = torch.tensor([[float((a - b).norm()) for b in e] for a in e])
    return d / d[d > 0].mean()


def angles(e: Tensor) -> Tensor:
    """Cosine of the angle at the first index."""
    n = len(e)
    found = torch.zeros(n, n, n)
    for j in range(n):
        for i in range(n):
            for k in range(n):
                a, b = e[i] - e[j], e[k] - e[j]
                if a.any() and b.any():
                    found[j, i, k] = a @ b / (a.norm() * b.norm())
    return found


def test_relations_equal_loops() -> None:
    e = torch.randn(7, 5)
    assert torch.allclose(relative_distances(e), distances(e), atol=1e-4)
    assert torch.allclose(angle_cosines(e), angles(e), atol=1e-4)


@pytest.mark.parametrize(("variant", "weights"), [("default", (1.0, 2.0)), ("paper", (25.0, 50.0))])
def test_terms_are_huber_losses_of_the_relations(variant: str, weights: tuple[float, float]) -> None:
    s, t = torch.randn(2, 4, 6, 6), torch.randn(2, 5, 6, 6)
    method = pair_method("rkd", 4, 5, 2, max_nodes=8, variant=variant)
    e_s, e_t = embeddings(s), embeddings(t)
    found = features_terms(method, s, t)
    huber = torch.nn.functional.smooth_l1_loss
    assert float(found["rkd_distance"]) == pytest.approx(
        weights[0] * float(huber(distances(e_s), distances(e_t))), rel=1e-3
    )
    assert float(found["rkd_angle"]) == pytest.approx(weights[1] * float(huber(angles(e_s), angles(e_t))), rel=1e-3)


def test_scale_rotation_and_channels_of_the_features_do_not_matter() -> None:
    s = torch.randn(2, 4, 6, 6)
    rotation = torch.linalg.qr(torch.randn(6, 4)).Q
    t = 5 * torch.einsum("oc,bchw->bohw", rotation, s)
    assert all(float(v) < 1e-6 for v in features_terms(pair_method("rkd", 4, 6, 2), s, t).values())


def test_equal_places_give_finite_gradient() -> None:
    s = torch.ones(1, 4, 4, 4, requires_grad=True)
    sum(features_terms(pair_method("rkd", 4, 5, 2), s, torch.randn(1, 5, 4, 4)).values()).backward()  # type: ignore[union-attr]
    assert s.grad is not None and torch.isfinite(s.grad).all()


@pytest.mark.parametrize("batch", [1, 2])
def test_fewer_than_three_places_teach_nothing_and_that_is_said_once(
    batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    s, method = torch.randn(batch, 4, 1, 1, requires_grad=True), pair_method("rkd", 4, 5, 2)
    for _ in range(2):
        terms = features_terms(method, s, torch.randn(batch, 5, 1, 1))
    assert len(caplog.records) == 1 and f"a batch of {batch} with maps of (1, 1) has fewer" in caplog.text
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert s.grad is not None and not s.grad.any() and not any(terms.values())


def test_nearly_constant_maps_keep_the_digits_of_their_distances() -> None:
    e = 1000 + 1e-3 * torch.randn(6, 5)
    assert torch.allclose(relative_distances(e), distances(e.double()), rtol=1e-4)
