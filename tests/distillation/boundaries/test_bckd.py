"""BCKD against loops over voxels, SciPy and MONAI, and the card's schedule."""

from __future__ import annotations

from math import log1p

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Progress, Target
from medkd.distillation import build_method
from medkd.distillation.boundaries.bckd import BCKD
from medkd.distillation.boundaries.boundary import boundary_band
from tests.distillation.toys import batch, patch, plain_context, smooth


def bckd(
    rank: int = 3, regions: bool = False, outputs: int = 3, spacing: tuple[float, ...] | None = None, **settings: object
) -> BCKD:
    """The method."""
    method = build_method(
        "bckd", plain_context(rank, regions, outputs, spacing), {f"bckd.{k}": v for k, v in settings.items()}
    )
    assert isinstance(method, BCKD)
    return method


def logits(rank: int, scale: float = 4.0) -> tuple[Tensor, Tensor]:
    """Blobby logits of a student and a teacher."""
    return smooth(2, 3, patch(rank)) * scale, smooth(2, 3, patch(rank)) * scale


def hard_by_loop(s: Tensor, t: Tensor, target: Target, regions: bool, paper: bool) -> float:
    """The hard term, class by class and voxel by voxel."""
    found = []
    for n in range(len(s)):
        for k in range(3):
            mask = target.labels[n, k] > 0.5 if regions else target.labels[n, 0] == k
            band = boundary_band(mask[None], replicate=not paper)[0]
            voxels = []
            for place in band.nonzero().tolist():
                a, b = s[(n, slice(None), *place)], t[(n, slice(None), *place)]
                if regions:
                    voxels.append(float(((a.sigmoid() - b.sigmoid()) ** 2).sum()))
                else:
                    p, q = b.softmax(0), a.softmax(0)
                    voxels.append(float(sum(p * (p / q).log())))
            if voxels:
                found.append(sum(voxels) / len(voxels))
    return sum(found) / 3 if paper else sum(found) / len(found)


def soft_by_scipy(s: Tensor, t: Tensor, regions: bool, spacing: tuple[float, ...]) -> float:
    """The soft term with SciPy's transform."""
    p = (s.sigmoid() if regions else s.softmax(1)[:, 1:]).numpy()
    truth = (t.sigmoid() >= 0.5).numpy() if regions else np.stack([t.argmax(1).numpy() == k for k in range(1, 3)], 1)
    total = 0.0
    for n, k in np.ndindex(*p.shape[:2]):
        weight = np.zeros(p.shape[2:])
        for mask in (p[n, k] > 0.5, truth[n, k]):
            if mask.any() and not mask.all():
                weight += (
                    distance_transform_edt(mask, sampling=spacing) + distance_transform_edt(~mask, sampling=spacing)
                ) ** 2
        total += ((p[n, k] - truth[n, k]) ** 2 * weight).sum()
    return log1p(total / p.size)


@pytest.mark.parametrize("variant", ["default", "paper"])
@pytest.mark.parametrize(("rank", "regions"), [(2, False), (2, True), (3, False)])
def test_hard_term_equals_a_loop(rank: int, regions: bool, variant: str) -> None:
    few = (slice(0, 2), slice(None), *(slice(0, 8),) * rank)
    s, t = (z[few] for z in logits(rank))
    target = Target(batch(rank, regions)[1].labels[few])
    found = bckd(rank, regions, variant=variant).hard_boundary(s, t, target)
    assert float(found) == pytest.approx(hard_by_loop(s, t, target, regions, variant == "paper"), rel=1e-4)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.5, 1.0)])
def test_soft_term_equals_scipys_transform(regions: bool, spacing: tuple[float, ...]) -> None:
    s, t = logits(3)
    mean = float(np.prod(spacing) ** (1 / 3))
    for distances, used in (("mm", spacing), ("voxel", (1.0,) * 3), ("relative", tuple(x / mean for x in spacing))):
        found = bckd(3, regions, spacing=spacing, distances=distances).soft_boundary(s, t, None)
        assert float(found) == pytest.approx(soft_by_scipy(s, t, regions, used), rel=1e-4)


def test_soft_term_is_the_logarithm_of_monais_hausdorff_loss() -> None:
    from monai.losses import HausdorffDTLoss

    s, t = logits(3)
    truth = torch.nn.functional.one_hot(t.argmax(1), 3).movedim(-1, 1).float()
    monai = HausdorffDTLoss(alpha=2.0, include_background=False, softmax=True)(s, truth)
    assert torch.allclose(bckd(distances="voxel").soft_boundary(s, t, None), torch.log1p(monai), rtol=1e-4)


def test_paper_scale_is_the_documented_multiple_of_the_default() -> None:
    """``paper = N K_present / K · default`` without the patch's border and with every class in every sample."""
    labels = torch.zeros(2, 1, 16, 16, 16, dtype=torch.long)
    labels[:, :, 4:8, 4:8, 4:8], labels[:, :, 9:12, 9:12, 9:12] = 1, 2
    s, t = torch.randn(2, 5, 16, 16, 16), torch.randn(2, 5, 16, 16, 16)
    valid = torch.zeros_like(labels, dtype=torch.bool)
    valid[:, :, 1:-1, 1:-1, 1:-1] = True
    default, paper = (
        bckd(outputs=5, variant=v).hard_boundary(s, t, Target(labels, valid)) for v in ("default", "paper")
    )
    assert torch.allclose(paper, default * 2 * 3 / 5)


def test_hard_term_is_zero_at_the_teacher_and_without_boundaries() -> None:
    s, t = logits(3)
    target = batch(3)[1]
    assert float(bckd().hard_boundary(t, t, target)) == 0.0
    s.requires_grad_()
    empty = bckd().hard_boundary(s, t, Target(torch.zeros_like(target.labels)))
    empty.backward()
    assert float(empty) == 0.0 and s.grad is not None and not s.grad.any()


def test_soft_term_is_zero_where_the_student_is_the_teachers_hard_prediction() -> None:
    _, t = logits(3)
    sure = torch.nn.functional.one_hot(t.argmax(1), 3).movedim(-1, 1).float() * 200
    assert float(bckd().soft_boundary(sure, t, None)) == 0.0


def test_gradient_of_the_soft_term_flows_through_the_difference_only() -> None:
    """Its closed form is ``2 (p − t) d² / (numel (1 + H))`` with respect to the probability; regions make it simple."""
    s, t = logits(2)
    s.requires_grad_()
    method = bckd(2, True)
    loss = method.soft_boundary(s, t, None)
    (grad,) = torch.autograd.grad(loss, s)
    p, truth = s.detach().sigmoid(), (t >= 0).float()
    weight = torch.zeros_like(p)
    for n, k in np.ndindex(2, 3):
        for mask in ((p[n, k] > 0.5).numpy(), truth[n, k].numpy() > 0):
            if mask.any() and not mask.all():
                weight[n, k] += torch.from_numpy(
                    (distance_transform_edt(mask) + distance_transform_edt(~mask)) ** 2
                ).float()
    expected = 2 * (p - truth) * weight / p.numel() / loss.detach().exp() * p * (1 - p)
    assert torch.allclose(grad, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "epochs", "expected"),
    [
        ({"variant": "paper"}, 1000, {0: 1.0, 500: 0.5, 999: 0.001, 5000: 0.001}),
        ({"variant": "paper", "floor": 0.5, "decay": 0.0005}, 1000, {0: 1.0, 500: 0.75, 999: 0.5005}),
        ({"variant": "paper", "floor": 0.5, "decay": 0.0015}, 300, {0: 1.0, 299: 0.5515}),
        ({"variant": "paper", "floor": 0.5, "decay": 0.01}, 50, {0: 1.0, 25: 0.75, 49: 0.51}),
        ({}, 50, {0: 1.0, 25: 0.75, 50: 0.5}),
        ({}, 1000, {0: 1.0, 500: 0.75, 1000: 0.5}),
        ({"floor": 0.0}, 10, {0: 1.0, 5: 0.5, 10: 0.0}),
    ],
)
def test_schedule_is_the_cards_table_and_by_default_fits_any_run(
    settings: dict[str, object], epochs: int, expected: dict[int, float]
) -> None:
    method = bckd(**settings)  # type: ignore[arg-type]
    for epoch, alpha in expected.items():
        assert method.alpha(Progress(epoch, epochs)) == pytest.approx(alpha)


def test_terms_follow_the_schedule_and_a_term_without_weight_is_not_computed() -> None:
    s, t = logits(3)
    target = batch(3)[1]
    method = bckd(hard_weight=2.0, soft_weight=3.0)
    hard, soft = method.hard_boundary(s, t, target), method.soft_boundary(s, t, None)
    for epoch, alpha in ((0, 1.0), (5, 0.75)):
        terms = method(Outputs(logits=s), Outputs(logits=t), Target(target.labels, None, Progress(epoch, 10)))
        assert torch.allclose(terms["hard_boundary"], 2 * alpha * hard)
        assert torch.allclose(terms["soft_boundary"], 3 * (1 - alpha) * soft)
    method.soft_boundary = None  # type: ignore[assignment, method-assign]
    method(Outputs(logits=s), Outputs(logits=t), Target(target.labels, None, Progress(0, 10)))


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(MethodError, match=r"bckd.distances must be one of relative, voxel, mm, found 'voxels'"):
        bckd(distances="voxels")
    with pytest.raises(MethodError, match=r"bckd.floor must be a number of at least 0, found -1"):
        bckd(floor=-1)
