"""The distiller: a frozen teacher, the student's exact input, float32 terms, and nothing left behind."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Target
from medkd.distillation import Context, Distiller, Method, Needs, build_method
from tests.distillation.toys import ToyNetwork, batch, context, plain_context, step, trained


class Probe(Method):
    """Records what it is given."""

    def __init__(self, context: Context, **names: tuple[str, ...]) -> None:
        super().__init__(context)
        self.names = names
        self.seen: list[tuple[Outputs, Outputs]] = []
        self.helper = nn.Linear(2, 2)

    def needs(self) -> Needs:
        """As given."""
        return Needs(**self.names)

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """The difference of the logits."""
        self.seen.append((student, teacher))
        return {"probe": (student.logits - teacher.logits).square().mean() + self.helper.weight.sum()}


class Spy(nn.Module):
    """A teacher that remembers its input and state."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls: list[dict[str, Any]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Three copies of the input."""
        self.calls.append(
            {
                "x": x,
                "grad": torch.is_grad_enabled(),
                "training": self.training,
                "autocast": torch.is_autocast_enabled("cpu"),
            }
        )
        return x.repeat(1, 3, *(1,) * (x.ndim - 2)) * self.scale


def test_teacher_is_frozen_in_eval_mode_and_sees_the_students_input() -> None:
    image, target = batch(3)
    spy = Spy().train()
    distiller = Distiller(spy, Probe(plain_context()))
    spy.train()  # somebody else's mistake does not matter
    logits = image.repeat(1, 3, 1, 1, 1).requires_grad_()
    distiller.terms(image, logits, target)["probe"].backward()
    call = spy.calls[0]
    assert call["x"].data_ptr() == image.data_ptr()
    assert not call["grad"] and not call["training"]
    assert spy.scale.grad is None and not spy.scale.requires_grad


def test_teacher_is_no_submodule_and_only_the_helpers_are_trained_and_saved() -> None:
    method = Probe(plain_context())
    distiller = Distiller(ToyNetwork(3), method)
    assert set(distiller.state_dict()) == {"helper.weight", "helper.bias"}
    assert {id(p) for p in distiller.parameters()} == {id(p) for p in method.parameters()}
    other = Distiller(ToyNetwork(3), Probe(plain_context()))
    other.load_state_dict(distiller.state_dict())
    assert torch.equal(other.method.helper.weight, method.helper.weight)  # type: ignore[union-attr]


def test_none_needs_no_teacher_and_others_refuse_without_one() -> None:
    distiller = Distiller(None, build_method("none", plain_context()))
    image, target = batch(3)
    assert not distiller.needs_teacher
    assert distiller.terms(image, torch.randn(2, 3, 8, 12, 12), target) == {}
    with pytest.raises(MethodError, match="KD needs a teacher"):
        Distiller(None, build_method("kd", plain_context()))


def test_none_never_runs_a_teacher_that_is_given() -> None:
    spy = Spy()
    image, target = batch(3)
    Distiller(spy, build_method("none", plain_context())).terms(image, torch.randn(2, 3, 8, 12, 12), target)
    assert spy.calls == []


def test_terms_are_float32_outside_autocast_while_the_teacher_runs_inside() -> None:
    image, target = batch(3)
    spy, student = Spy(), ToyNetwork(3)
    names = {"student": ("dec0",), "teacher": ()}
    distiller = Distiller(spy, Probe(context(student, None, 3), **names))
    states = []
    distiller.method.register_forward_pre_hook(lambda *_: states.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with distiller.student_capture(student):
            logits = student(image)
        assert logits.dtype == torch.bfloat16
        terms = distiller.terms(image, logits, target)
    seen = distiller.method.seen[0][0]  # type: ignore[union-attr]
    assert spy.calls[0]["autocast"] and states == [False]
    assert terms["probe"].dtype == seen.logits.dtype == seen.features["dec0"].dtype == torch.float32


def test_deep_supervision_is_split_into_logits_and_auxiliary() -> None:
    image, target = batch(3)
    probe = Probe(plain_context())
    full, half = torch.randn(2, 3, 8, 12, 12), torch.randn(2, 3, 4, 6, 6)
    Distiller(Spy(), probe).terms(image, [full, half], target)
    student = probe.seen[0][0]
    assert torch.equal(student.logits, full) and torch.equal(student.auxiliary[0], half)


def test_forgotten_capture_and_unequal_outputs_are_refused() -> None:
    image, target = batch(3)
    student = ToyNetwork(3)
    distiller = Distiller(ToyNetwork(3), Probe(context(student, None, 3), student=("dec0",)))
    with pytest.raises(MethodError, match="'dec0' was not captured"):
        distiller.terms(image, student(image), target)
    with pytest.raises(MethodError, match=r"equal outputs, found \(2, 3, 8, 12, 12\) and \(2, 2, 8, 12, 12\)"):
        Distiller(ToyNetwork(3), Probe(plain_context())).terms(image, torch.randn(2, 2, 8, 12, 12), target)


def test_features_of_a_step_are_not_used_again_in_the_next() -> None:
    image, target = batch(3)
    student = ToyNetwork(3)
    distiller = Distiller(
        trained(3, False), Probe(context(student, trained(3, False), 3), student=("dec0",), teacher=("dec0",))
    )
    with distiller.student_capture(student):
        logits = student(image)
    distiller.terms(image, logits, target)
    with pytest.raises(MethodError, match="was not captured"):
        distiller.terms(image, logits, target)


def test_nothing_of_a_finished_step_stays_in_memory() -> None:
    image, target = batch(3)
    student, teacher = ToyNetwork(3), trained(3, False)
    distiller = Distiller(teacher, build_method("acf", context(student, teacher, 3)))
    references = []
    capture = distiller.student_capture(student)
    with capture:
        logits = student(image)
    references.append(weakref.ref(capture.features["dec0"]))
    sum(distiller.terms(image, logits, target).values()).backward()  # type: ignore[union-attr]
    del logits
    gc.collect()
    assert references[0]() is None


class Continuing(Probe):
    """A probe that may continue the teacher."""

    continues_teacher = True


def test_forward_from_reaches_the_method_and_gives_gradient_to_the_feature_only() -> None:
    image, target = batch(3)
    teacher = ToyNetwork(3, 6)
    probe = Continuing(plain_context(), teacher=("dec1",))
    Distiller(teacher, probe).terms(image, torch.randn(2, 3, 8, 12, 12), target)
    outputs = probe.seen[0][1]
    assert outputs.forward_from is not None
    assert torch.allclose(outputs.forward_from("dec1", outputs.features["dec1"]), outputs.logits, atol=1e-5)
    feature = torch.randn(2, 6, 8, 12, 12, requires_grad=True)
    outputs.forward_from("dec0", feature).sum().backward()
    assert feature.grad is not None and all(p.grad is None for p in teacher.parameters())


def test_forward_from_runs_under_the_callers_autocast() -> None:
    image, target = batch(3)
    teacher = ToyNetwork(3, 6)
    probe = Continuing(plain_context())
    dtypes = []
    teacher.out.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Distiller(teacher, probe).terms(image, torch.randn(2, 3, 8, 12, 12), target)
    rest = probe.seen[0][1].forward_from
    assert rest is not None and rest("dec0", torch.randn(2, 6, 8, 12, 12)).dtype == torch.float32
    assert dtypes == [torch.bfloat16, torch.bfloat16]


def test_forward_from_is_offered_only_to_methods_that_ask_and_a_teacher_without_it_is_refused() -> None:
    image, target = batch(3)
    probe, teacher = Probe(plain_context()), ToyNetwork(3)
    Distiller(teacher, probe).terms(image, torch.randn(2, 3, 8, 12, 12), target)
    assert probe.seen[0][1].forward_from is None and not teacher.remember
    with pytest.raises(MethodError, match="which Spy does not offer"):
        Distiller(Spy(), Continuing(plain_context()))


@pytest.mark.parametrize("name", ["acf+kd", "kd+cwd"])
def test_a_composition_is_the_sum_of_its_parts(name: str) -> None:
    student, teacher = ToyNetwork(3), trained(3, False)
    image, target = batch(3)
    about = context(student, teacher, 3)
    together = build_method(name, about, {"kd.temperature": "2"})
    terms = step(together, student, teacher, image, target)
    for part in name.split("+"):
        alone = build_method(part, about, {"kd.temperature": "2"} if part == "kd" else None)
        alone.load_state_dict(together.parts[part].state_dict())  # type: ignore[index]
        for key, value in step(alone, student, teacher, image, target).items():
            assert torch.allclose(terms[f"{part}.{key}"], value)
    assert len(terms) == (3 if name == "acf+kd" else 2)


def test_unknown_names_and_values_name_the_nearest() -> None:
    with pytest.raises(MethodError, match=r"Unknown method 'cwdd'.*Did you mean 'cwd'"):
        build_method("cwdd", plain_context())
    with pytest.raises(MethodError, match=r"no parameter 'temperatur'.*Did you mean 'temperature'"):
        build_method("kd", plain_context(), {"kd.temperatur": 2})
    with pytest.raises(
        MethodError, match=r"kd.variant must be one of default, paper, found 'papers'.*Did you mean 'paper'"
    ):
        build_method("kd", plain_context(), {"kd.variant": "papers"})
    with pytest.raises(MethodError, match=r"kd.temperature must be a number above 0, found -1"):
        build_method("kd", plain_context(), {"kd.temperature": "-1"})
    with pytest.raises(MethodError, match="names a method twice"):
        build_method("kd+kd", plain_context())
    with pytest.raises(MethodError, match="does not belong to 'kd'"):
        build_method("kd", plain_context(), {"cwd.weight": 1})
