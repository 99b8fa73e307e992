"""MasKD's second stage against loops over images, tokens and channels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Outputs, Progress, Target
from medkd.distillation.prompts.maskd import MasKD, MaskTokens
from tests.distillation.toys import OUTPUTS, pair_method


def ready(student: int, teacher: int, rank: int, **settings: object) -> MasKD:
    """A method whose tokens are as if learnt: far from their start."""
    method = pair_method("maskd", student, teacher, rank, **settings)
    assert isinstance(method, MasKD)
    for buffer in method.prompts.buffers():
        buffer.normal_()
    method.prepared.fill_(True)
    return method


def shares(prompts: MaskTokens, x: Tensor) -> list[float]:
    """Of one image, through ordinary layers."""
    rank = x.ndim - 1
    hidden, channels = prompts.look.shape[:2]
    layer = (torch.nn.Conv3d if rank == 3 else torch.nn.Conv2d)(channels, hidden, 3, padding=1)
    layer.load_state_dict({"weight": prompts.look, "bias": prompts.look_bias})
    seen = layer(x[None])[0]
    seen = (F.relu(seen) if prompts.rectified else seen).flatten(1).mean(1)
    return torch.softmax(prompts.choose @ seen + prompts.choose_bias, 0).tolist()  # type: ignore[operator]


def slow(prompts: MaskTokens, s: Tensor, t: Tensor, own: bool) -> float:
    """Mean over images and channels of ``Σ_t p_t Σ_v M² (S − T)² / Σ_v M``."""
    found = []
    for a, b in zip(s, t, strict=True):
        weights = shares(prompts, b)
        masks = [torch.sigmoid(sum(d * c for d, c in zip(token.tolist(), b, strict=True))) for token in prompts.tokens]  # type: ignore[union-attr, arg-type]
        if own:
            others = [
                torch.sigmoid(sum(d * c for d, c in zip(token.tolist(), a, strict=True))) for token in prompts.tokens
            ]  # type: ignore[union-attr, arg-type]
            masks = [m * o for m, o in zip(masks, others, strict=True)]
        for c in range(len(a)):
            terms = [float((m * m * (a[c] - b[c]) ** 2).sum() / m.sum()) for m in masks]
            found.append(sum(w * x for w, x in zip(weights, terms, strict=True)))
    return sum(found) / len(found)


@pytest.mark.parametrize(("epoch", "own"), [(0, False), (1, True)])
@pytest.mark.parametrize("variant", ["default", "paper"])
@pytest.mark.parametrize("rank", [2, 3])
@torch.no_grad()
def test_equals_the_formula_written_out(rank: int, variant: str, epoch: int, own: bool) -> None:
    method = ready(4, 4, rank, variant=variant, weight=2.0, tokens=3, warmup=0.1)
    s, t = torch.randn(2, 4, *(5,) * rank), 3 * torch.randn(2, 4, *(5,) * rank)
    target = Target(torch.zeros(2, 1, *(5,) * rank, dtype=torch.long), None, Progress(epoch, 10))
    logits = torch.zeros(2, OUTPUTS, *(5,) * rank)
    found = method(Outputs(logits=logits, features={"s": s}), Outputs(logits=logits, features={"t": t}), target)[
        "maskd"
    ]
    adapted = method.adapters[0](s)
    assert isinstance(method.prompts[0], MaskTokens)
    scale = 2.0 if variant == "paper" else 2.0 / float(t.var(unbiased=False))
    assert float(found) == pytest.approx(scale * slow(method.prompts[0], adapted, t, own), rel=1e-3)


def test_the_masks_matter_and_have_no_gradient() -> None:
    method, progress = ready(4, 4, 2), Progress(9, 10)
    s, t = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(2, 4, 6, 6)
    target, logits = Target(torch.zeros(2, 1, 6, 6, dtype=torch.long), None, progress), torch.zeros(2, OUTPUTS, 6, 6)
    first = method(Outputs(logits=logits, features={"s": s}), Outputs(logits=logits, features={"t": t}), target)[
        "maskd"
    ]
    (gradient,) = torch.autograd.grad(first, s)
    assert bool((gradient * (s - t) >= 0).all())  # with fixed weights every difference shrinks
    for buffer in method.prompts.buffers():
        buffer.normal_()
    assert not torch.isclose(
        method(Outputs(logits=logits, features={"s": s}), Outputs(logits=logits, features={"t": t}), target)["maskd"],
        first,
    )


def test_other_channels_and_sizes_are_brought_together() -> None:
    method = ready(3, 5, 3)
    s, t = torch.randn(2, 3, 4, 4, 4, requires_grad=True), torch.randn(2, 5, 6, 6, 6)
    logits = torch.zeros(2, OUTPUTS, 6, 6, 6)
    method(Outputs(logits=logits, features={"s": s}), Outputs(logits=logits, features={"t": t}), Target(logits))[
        "maskd"
    ].backward()
    assert s.grad is not None and s.grad.any() and sum(p.numel() for p in method.parameters()) == 3 * 5 + 5
