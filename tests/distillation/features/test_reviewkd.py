"""ReviewKD's loss and fusion against the formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medkd.distillation.features.reviewkd import Fusion, ReviewKD, hierarchical_loss
from tests.distillation.toys import ToyNetwork, batch, context, features_terms, pair_method, step, trained


@pytest.mark.parametrize(("size", "levels"), [(8, (4, 2, 1)), (4, (2, 1)), (2, (1,)), (1, ())])
def test_hierarchical_loss_skips_levels_that_are_not_coarser(size: int, levels: tuple[int, ...]) -> None:
    a, b = torch.randn(2, 3, size, size, size), torch.randn(2, 3, size, size, size)
    total, weights = float((a - b).square().mean()), 1.0
    for share, cells in zip((0.5, 0.25, 0.125), levels, strict=False):  # a level that is left out halves nothing
        pooled = [F.avg_pool3d(x, size // cells) for x in (a, b)]
        total += share * float((pooled[0] - pooled[1]).square().mean())
        weights += share
    assert float(hierarchical_loss(a, b)) == pytest.approx(total / weights, rel=1e-4)


@pytest.mark.parametrize("rank", [2, 3])
def test_fusion_is_a_gated_sum(rank: int) -> None:
    fusion = Fusion(rank, (4, 6, 5), deeper=True, batch_norm=False)
    x, deep = torch.randn(2, 4, *(8,) * rank), torch.randn(2, 6, *(4,) * rank)
    output, passed = fusion(x, deep)
    inner = fusion.enter(x)
    up = F.interpolate(deep, scale_factor=2, mode="nearest")
    assert fusion.gates is not None
    gates = torch.sigmoid(fusion.gates(torch.cat((inner, up), 1)))
    expected = inner * gates[:, :1] + up * gates[:, 1:]
    assert torch.allclose(passed, expected, atol=1e-6) and torch.allclose(output, fusion.leave(expected), atol=1e-6)
    assert output.shape[1] == 5


def test_deep_levels_reach_the_finer_ones_and_only_the_deepest_has_no_gate() -> None:
    student, teacher = ToyNetwork(3), trained(3, False)
    from medkd.distillation import build_method

    method = build_method("reviewkd", context(student, teacher, 3), {"reviewkd.width": 8})
    assert isinstance(method, ReviewKD) and [s.name for s, _ in method.pairs] == ["enc0", "bottleneck"]
    gates = [f.gates for f in method.fusions if isinstance(f, Fusion)]
    assert isinstance(gates[0], nn.Conv3d) and gates[1] is None
    step(method, student, teacher, *batch(3))["reviewkd"].backward()
    assert gates[0].weight.grad is not None and gates[0].weight.grad.any()


def test_default_is_relative_to_the_teachers_variance_and_the_paper_is_not() -> None:
    s, t = torch.randn(2, 4, 8, 8, 8), 3 * torch.randn(2, 5, 8, 8, 8)
    found = {}
    for variant in ("default", "paper"):
        torch.manual_seed(0)
        method = pair_method("reviewkd", 4, 5, variant=variant).eval()
        fused = method.fusions[0](s, None)[0]  # type: ignore[index]
        found[variant] = float(features_terms(method, s, t)["reviewkd"]), float(hierarchical_loss(fused, t))
    assert found["default"][0] == pytest.approx(0.25 * found["default"][1] / float(t.var(unbiased=False)), rel=1e-4)
    assert found["paper"][0] == pytest.approx(found["paper"][1], rel=1e-4)
