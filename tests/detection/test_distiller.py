"""The detectors' distiller: a frozen teacher on the student's images, comparable anchors, float32 terms, clear
refusals.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Target
from medkd.detection.base import DetectionTarget, Detector, DetectorOutputs
from medkd.detection.distiller import DetectorDistiller
from medkd.distillation import Context, Method
from tests.detection.toys import ToyDense, ToyTwoStage, batch, build, changed, context, make, step, trained


class Probe(Method):
    """Records what it is given."""

    detection = True
    continues_teacher = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.helper = nn.Linear(2, 2)
        self.seen: list[tuple[DetectorOutputs, DetectorOutputs, DetectionTarget]] = []
        self.autocast: list[bool] = []

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """The sum of the student's logits."""
        assert (
            isinstance(student, DetectorOutputs)
            and isinstance(teacher, DetectorOutputs)
            and isinstance(target, DetectionTarget)
        )
        self.seen.append((student, teacher, target))
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        return {"probe": student.logits.sum() + self.helper.weight.sum()}


class Spy(ToyDense):
    """A teacher that remembers how it was run."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.calls: list[dict[str, Any]] = []

    def observe(self, images: Tensor, student: DetectorOutputs) -> DetectorOutputs:
        """Observe, and note it."""
        state = {
            "grad": torch.is_grad_enabled(),
            "training": self.training,
            "autocast": torch.is_autocast_enabled("cpu"),
        }
        self.calls.append({"images": images, **state})
        return super().observe(images, student)


def floating(outputs: DetectorOutputs) -> list[Tensor]:
    """Every floating tensor."""
    values = [getattr(outputs, f.name) for f in fields(outputs)]
    flat = [
        v
        for value in values
        for v in (value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value])
    ]
    return [v for v in flat if isinstance(v, Tensor) and v.is_floating_point()]


def test_the_teacher_is_frozen_in_eval_mode_and_sees_the_students_images() -> None:
    student = make("dense")
    spy = Spy(student.spec).train()
    method = Probe(context(student, spy))
    distiller = DetectorDistiller(spy, method)
    spy.train()  # somebody else's mistake does not matter
    data = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, outputs, target = student.losses(*data)
        terms = distiller.terms(data[0], outputs, target)
    terms["probe"].backward()
    call = spy.calls[0]
    assert not call["grad"] and not call["training"] and call["autocast"] and torch.equal(call["images"], data[0])
    assert method.autocast == [False] and all(
        v.dtype == torch.float32 for seen in method.seen[0][:2] for v in floating(seen)
    )
    assert all(not p.requires_grad and p.grad is None for p in spy.parameters())
    assert not any(p is q for p in method.parameters() for q in spy.parameters())
    assert {id(p) for p in distiller.parameters()} == {id(p) for p in method.parameters()}
    assert all("helper" in name for name in distiller.state_dict())


def test_the_continuation_gives_gradient_to_the_feature_only_and_runs_under_the_callers_autocast() -> None:
    student, teacher = make("dense"), trained("dense")
    method = Probe(context(student, teacher))
    data = batch()
    _, outputs, target = student.losses(*data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        DetectorDistiller(teacher, method).terms(data[0], outputs, target)
    _, taught, _ = method.seen[0]
    assert taught.forward_from is not None
    feature = taught.features["p3.class"].clone().requires_grad_()
    logits = taught.forward_from("p3.class", feature)
    logits.sum().backward()
    exact = teacher.forward_from("p3.class", feature)
    assert logits.dtype == torch.float32 and feature.grad is not None and feature.grad.any()
    assert not torch.equal(logits, exact) and torch.allclose(logits, exact, atol=0.3)
    assert all(p.grad is None for p in teacher.parameters())


def test_anchors_weigh_by_the_teachers_certainty_and_left_out_ones_nothing() -> None:
    student, teacher = make("dense"), trained("dense")
    method, data = Probe(context(student, teacher)), batch()
    _, outputs, target = student.losses(*data)
    DetectorDistiller(teacher, method).terms(data[0], outputs, target)
    _, taught, seen = method.seen[0]
    assert seen.valid is not None and (target.labels == -2).any() and seen.progress == target.progress
    for image in range(2):
        for anchor in range(taught.logits.shape[2]):
            certainty = max(torch.sigmoid(taught.logits[image, :, anchor]).tolist())
            wanted = 0.0 if target.labels[image, 0, anchor] == -2 else certainty
            assert float(seen.valid[image, 0, anchor]) == pytest.approx(wanted, rel=1e-5)


def test_only_levels_of_equal_stride_are_compared() -> None:
    student, teacher = make("dense4"), trained("dense")
    method, data = Probe(context(student, teacher)), batch()
    _, outputs, target = student.losses(*data)
    DetectorDistiller(teacher, method).terms(data[0], outputs, target)
    ours, theirs, seen = method.seen[0]
    fine = outputs.levels[0].stop
    assert [level.stride for level in outputs.levels] == [4, 8, 16] and [level.stride for level in ours.levels] == [
        8,
        16,
    ]
    assert ours.levels == theirs.levels and ours.logits.shape == theirs.logits.shape
    assert torch.equal(ours.logits, outputs.logits[:, :, fine:]) and torch.equal(
        seen.labels, target.labels[:, :, fine:]
    )
    assert ours.boxes is not None and outputs.boxes is not None and torch.equal(ours.boxes, outputs.boxes[:, fine:])
    assert ours.distribution is not None and ours.distribution.shape[1] == ours.logits.shape[2]
    reverse, other = make("dense"), trained("dense4")
    swapped = Probe(context(reverse, other))
    _, outputs, target = reverse.losses(*data)
    DetectorDistiller(other, swapped).terms(data[0], outputs, target)
    assert swapped.seen[0][1].logits.shape == outputs.logits.shape


def test_a_two_stage_teacher_scores_the_students_proposals() -> None:
    student, teacher = make("two-stage"), trained("two-stage")
    method, data = Probe(context(student, teacher)), batch()
    method.continues_teacher = False  # type: ignore[misc]
    _, outputs, target = student.losses(*data)
    DetectorDistiller(teacher, method).terms(data[0], outputs, target)
    _, taught, seen = method.seen[0]
    assert taught.logits.shape == outputs.logits.shape and seen.valid is not None and bool((seen.valid == 1).all())
    assert all(torch.equal(a, b) for a, b in zip(taught.proposals, outputs.proposals, strict=True))


@pytest.mark.parametrize(("student", "teacher"), [("dense", "two-stage"), ("two-stage", "dense")])
def test_scores_are_not_compared_between_kinds_but_features_are(student: str, teacher: str) -> None:
    learner, expert = make(student), trained(teacher)
    for name in ("kd", "dkd", "pkd+kd"):
        with pytest.raises(MethodError, match="choose a method that compares features"):
            DetectorDistiller(expert, build(name, learner, expert))
    assert step(build("pkd", learner, expert), learner, expert, batch())["pkd"] > 0


def test_a_teacher_of_other_classes_is_refused() -> None:
    student, teacher = make("dense", classes=2), trained("dense")
    with pytest.raises(MethodError, match="knows 3 classes and the student 2"):
        DetectorDistiller(teacher, build("pkd", student, teacher))


def test_heads_with_other_anchors_are_refused_where_scores_are_compared() -> None:
    class TwoAnchors(ToyDense):
        """Every anchor twice."""

        def head(self, neck: dict[str, Tensor]) -> DetectorOutputs:
            """Doubled."""
            once = super().head(neck)
            levels = tuple(changed(level, start=2 * level.start, stop=2 * level.stop) for level in once.levels)  # type: ignore[arg-type]
            return changed(once, logits=once.logits.repeat_interleave(2, 2), levels=levels)  # type: ignore[arg-type, return-value]

    student = make("dense")
    teacher = TwoAnchors(student.spec)
    with pytest.raises(MethodError, match="160 anchors and 80 anchors"):
        step(build("kd", student, teacher), student, teacher, batch())
    assert torch.isfinite(step(build("mimic", student, teacher), student, teacher, batch())["mimic"])


class Anchored(ToyDense):
    """Has an anchor of 4 strides in each cell, or another one."""

    side = 4.0

    @property
    def anchors(self) -> tuple[tuple[float, float], ...]:
        """One square."""
        return ((self.side, 1.0),)


@pytest.mark.parametrize("name", ["kd", "dkd", "crosskd", "pkd+kd"])
def test_a_teacher_with_anchors_of_another_size_is_refused_where_scores_are_compared(name: str) -> None:
    class Smaller(Anchored):
        """Anchors of half the size."""

        side = 2.0

    student = make("dense")
    own, other = Anchored(student.spec), Smaller(student.spec)
    with pytest.raises(
        MethodError,
        match=r"the teacher's anchors \(sides of 2 strides, .*\) are not the student's \(sides of 4 strides",
    ):
        DetectorDistiller(other, build(name, own, other), own.anchors)
    for expert, learner in ((Anchored(student.spec), own), (other, student), (student, own)):  # equal, or one has none
        DetectorDistiller(expert, build(name, learner, expert), learner.anchors)
    DetectorDistiller(other, build("pkd", own, other), own.anchors)


@pytest.mark.parametrize("name", ["crosskd", "maskd", "freekd"])
def test_a_teacher_that_cannot_be_continued_is_refused(name: str) -> None:
    class Closed(ToyDense):
        """Offers no continuation."""

        forward_from = Detector.forward_from
        losses_from_neck = Detector.losses_from_neck

    student = make("dense")
    teacher = Closed(student.spec)
    with pytest.raises(MethodError, match="rest of the teacher, which Closed does not offer"):
        DetectorDistiller(teacher, build(name, student, teacher))


def test_without_a_teacher_only_none_works() -> None:
    student, data = make("dense"), batch()
    _, outputs, target = student.losses(*data)
    assert DetectorDistiller(None, build("none", student, student)).terms(data[0], outputs, target) == {}
    ignored = DetectorDistiller(trained("dense"), build("none", student, student))
    assert not ignored.needs_teacher and ignored.terms(data[0], outputs, target) == {}
    with pytest.raises(MethodError, match="needs a teacher"):
        DetectorDistiller(None, build("kd", student, student))


def test_the_first_stage_runs_once_and_comes_back_with_the_state() -> None:
    student, teacher, data = make("two-stage"), trained("two-stage"), batch()
    distiller = DetectorDistiller(teacher, build("maskd+kd", student, teacher))
    assert distiller.needs_preparation
    drawn = iter([data] * 5)
    distiller.method.parts["maskd"].iterations = 3  # type: ignore[index]
    distiller.prepare(drawn)
    assert not distiller.needs_preparation and len(list(drawn)) == 2
    distiller.prepare(iter(()))  # nothing more to do
    again = DetectorDistiller(teacher, build("maskd+kd", student, teacher))
    again.load_state_dict(distiller.state_dict())
    assert not again.needs_preparation
    _, outputs, target = student.losses(*data)
    first, second = (d.terms(data[0], outputs, target) for d in (distiller, again))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    assert all(p.grad is None for p in teacher.parameters()) and isinstance(teacher, ToyTwoStage)
