"""The divergence that is taken block by block, against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medkd.distillation.outputs import divergence
from medkd.distillation.outputs.divergence import softmax_kl


def _formula(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = ((z.double() / temperature).softmax(1) for z in (teacher, student))
    return (p * (p.log() - q.log())).sum(1, keepdim=True)


def _logits(shape: tuple[int, ...], seed: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [1, 20, 2**16])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 3, 4, 5), (1, 14, 3, 4, 5), (6, 4), (0, 3, 8), (2, 3, 0)], ids=str)
def test_value_and_gradient_are_the_formulas(
    shape: tuple[int, ...], temperature: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "_BLOCK", block)
    student, teacher = _logits(shape, 1).requires_grad_(), _logits(shape, 2)
    weight = _logits((shape[0], 1, *shape[2:]), 3)
    found, wanted = softmax_kl(student, teacher, temperature), _formula(student, teacher, temperature)
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-5)
    grads = [torch.autograd.grad((kl * weight).sum(), student, retain_graph=True)[0] for kl in (found, wanted)]
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=1e-5)
    again = torch.autograd.grad((found * weight).sum(), student)[0]  # the graph may be walked twice
    assert torch.equal(again, grads[0])


@pytest.mark.parametrize("learning", [(True, True), (False, True)])
def test_both_sides_may_learn(learning: tuple[bool, bool]) -> None:
    both = [_logits((2, 3, 4), seed).requires_grad_(learns) for seed, learns in enumerate(learning)]
    wanted = [logits for logits in both if logits.requires_grad]
    gradients = [torch.autograd.grad(kl(*both, 2.0).sum(), wanted) for kl in (softmax_kl, _formula)]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (0, 3, 2, 1)])
def test_the_order_in_memory_changes_nothing(order: tuple[int, ...]) -> None:
    shape = (2, 3, 4, 5)
    back = [order.index(axis) for axis in range(4)]
    student, teacher = (_logits(shape, seed).permute(order).contiguous().permute(back) for seed in (1, 2))
    assert not student.is_contiguous()
    torch.testing.assert_close(softmax_kl(student, teacher), softmax_kl(student.contiguous(), teacher.contiguous()))


def test_far_logits_stay_finite() -> None:
    student = torch.tensor([[[200.0], [-200.0]]]).requires_grad_()
    teacher = torch.tensor([[[-150.0], [150.0]]])
    loss = softmax_kl(student, teacher)
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(400.0)
    assert student.grad is not None and student.grad.flatten().tolist() == pytest.approx([1.0, -1.0])
