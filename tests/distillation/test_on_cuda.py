"""Every method's loss on a GPU, without one: right devices, no waiting for the device, few launches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation import METHODS, Context, Method, build_method, parameters_of
from medkd.distillation.boundaries import distance, distance_batch
from medkd.distillation.gradient_check import random_outputs
from tests.distillation.fake_device import DEVICE, Operations, loss_on_fake_device
from tests.distillation.toys import ToyNetwork, context, plain_context

EVERY = [
    (n, v) for n in METHODS for v in ("default", "paper") if v == "default" or "variant" in parameters_of(METHODS[n])
]
MOST_QUESTIONS = {"bckd": 1, "acf_bckd": 1}  # times per step that the host waits for the device
MOST_LAUNCHES = 300


@pytest.mark.parametrize(("rank", "regions", "valid"), [(2, False, False), (3, False, True), (3, True, False)])
@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_a_loss_stays_on_its_device_and_asks_it_nothing(
    name: str, variant: str, rank: int, regions: bool, valid: bool
) -> None:
    if regions and name in ("nkd", "dkd"):
        pytest.skip("not defined for regions")
    about = context(ToyNetwork(rank), ToyNetwork(rank, 6), rank, regions)
    method = build_method(name, about, {f"{name}.variant": variant} if variant == "paper" else {})
    terms, operations = loss_on_fake_device(method, valid=valid)
    assert all(term.device.type == DEVICE and term.ndim == 0 for term in terms.values())
    assert operations.questions <= MOST_QUESTIONS.get(name, 0)
    assert operations.copies == []


@pytest.mark.parametrize("size", [32, 64, 96, 128, 192])
@pytest.mark.parametrize("classes", [3, 14])
def test_the_boundary_terms_start_few_operations_at_any_size(size: int, classes: int) -> None:
    about = Context(
        student_taps=(),
        teacher_taps=(),
        num_outputs=classes,
        regions=False,
        spacing=(3.0, 1.0, 0.7),
        patch_size=(size // 2, size, size),
    )
    terms, operations = loss_on_fake_device(build_method("bckd", about))
    assert len(terms) == 2 and len(operations.launches) <= MOST_LAUNCHES, len(operations.launches)


def test_asking_for_a_value_copying_and_mixing_devices_are_caught() -> None:
    class Wrong(Method):
        """Whatever is given."""

        what = "item"

        def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
            """One of three mistakes."""
            z = student.logits
            if self.what == "item":
                return {"a": z.mean() * float(z.max())}
            if self.what == "copy":
                return {"a": (z.mean().cpu() * 2).to(z.device)}
            return {"a": z.mean() * torch.ones(2, 3).mean(0).sum() + torch.ones(3)[0:1] * z.flatten()[0:1]}

    method = Wrong(plain_context())
    with pytest.raises(Exception, match=r"_local_scalar_dense|item"):
        loss_on_fake_device(method)
    method.what = "mix"
    with pytest.raises(RuntimeError, match="device"):
        loss_on_fake_device(method)
    method.what = "copy"
    assert len(loss_on_fake_device(method)[1].copies) == 2


@pytest.mark.parametrize("name", ["bckd", "acf_bckd"])
def test_forward_and_backward_together_start_few_operations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, made to do as a GPU does, with as many chunks as there ever are."""
    monkeypatch.setattr(distance, "HOST", "none")
    monkeypatch.setattr(distance_batch, "_CHUNK", 1)
    method = build_method(name, context(ToyNetwork(3), ToyNetwork(3, 6), 3))
    student, teacher, target = random_outputs(method, 2)
    student.logits.requires_grad_()
    with Operations() as operations:
        terms = method(student, teacher, target)
        forward = len(operations.launches)
        torch.stack(list(terms.values())).sum().backward()
    assert student.logits.grad is not None and bool(torch.isfinite(student.logits.grad).all())
    assert forward <= MOST_LAUNCHES and len(operations.launches) <= 400, (forward, len(operations.launches))
    plain = build_method("bckd", method.context)
    monkeypatch.setattr(distance, "HOST", "cpu")
    expected = plain(student, teacher, target)
    assert float(terms["soft_boundary"].detach()) == pytest.approx(float(expected["soft_boundary"].detach()), rel=1e-5)
