"""Every method's loss on a CUDA device: equal to the CPU's, gradients too, without waiting for the device."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation import METHODS, Method, build_method, parameters_of
from medkd.distillation.gradient_check import random_outputs
from tests.cuda_waits import waits
from tests.distillation.test_on_cuda import MOST_QUESTIONS
from tests.distillation.toys import ToyNetwork, context

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
MOST_WAITS = {**MOST_QUESTIONS, "sfd": 2}  # eigh asks whether it converged, once for each of the two pairs
DRAWS = {"cirkd", "fourier"}  # of a generator on the device, whose numbers are not the CPU's
EVERY = [
    (n, v) for n in METHODS for v in ("default", "paper") if v == "default" or "variant" in parameters_of(METHODS[n])
]


def test_the_count_sees_a_question() -> None:
    value = torch.ones(3, device="cuda")
    with waits() as found:
        value.sum().item()
    assert len(found) == 1


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_the_loss_and_its_gradient_equal_the_cpu(
    name: str, variant: str, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    about = context(ToyNetwork(rank), ToyNetwork(rank, 6), rank)
    method = build_method(name, about, {f"{name}.variant": variant} if variant == "paper" else {})
    if hasattr(method, "prepared"):
        method.prepared.fill_(True)
        method.load_state_dict(method.state_dict())
    student, teacher, target = random_outputs(method, 2)
    if teacher.forward_from is not None:
        pytest.skip("the stand-in of the teacher's rest lives on the CPU")
    moved = copy.deepcopy(method).cuda()
    expected, slope = _run(method, student, teacher, target)
    _run(moved, *_to_cuda(student, teacher, target))  # the first pass may make constants on the device
    there = _to_cuda(student, teacher, target)
    with waits() as found:
        terms, own = _run(moved, *there)
    assert len(found) <= MOST_WAITS.get(name, 0), found
    if name in DRAWS:
        return
    for key, value in expected.items():
        assert float(terms[key].detach()) == pytest.approx(float(value.detach()), rel=2e-3, abs=1e-5), key
    torch.testing.assert_close(own.cpu(), slope, rtol=2e-2, atol=2e-2 * float(slope.abs().max()) + 1e-8)


def _run(method: Method, student: Outputs, teacher: Outputs, target: Target) -> tuple[dict[str, Tensor], Tensor]:
    """The terms, and the gradient of their sum with respect to logits and features in a row."""
    leaves = [student.logits, *student.features.values()]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    features = dict(zip(student.features, leaves[1:], strict=True))
    terms = method(replace(student, logits=leaves[0], features=features), teacher, target)
    if not terms:
        return terms, torch.zeros(1)
    found = torch.autograd.grad(torch.stack(list(terms.values())).sum(), leaves, allow_unused=True)
    parts = [torch.zeros_like(a) if b is None else b for a, b in zip(leaves, found, strict=True)]
    return terms, torch.cat([part.flatten() for part in parts])


def _to_cuda(student: Outputs, teacher: Outputs, target: Target) -> tuple[Outputs, Outputs, Target]:
    def moved(outputs: Outputs) -> Outputs:
        average = None if outputs.average is None else _there(outputs.average)
        return replace(
            outputs,
            logits=_there(outputs.logits),
            features={key: _there(value) for key, value in outputs.features.items()},
            corrections={key: _there(value) for key, value in outputs.corrections.items()},
            average=average,
        )

    return moved(student), moved(teacher), replace(target, labels=_there(target.labels))


def _there(value: Tensor) -> Tensor:
    return value.cuda(non_blocking=True)
