"""What every method for detectors promises, for dense heads with and without distributions and for two-stage
detectors.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from medkd.core.errors import MethodError
from medkd.detection.base import Detector
from medkd.detection.methods import DETECTION_METHODS
from medkd.distillation import METHODS, Method
from tests.detection.toys import SIZE, batch, build, make, step, trained, twin

NAMES = sorted(({n for n in METHODS if METHODS[n].detection} | set(DETECTION_METHODS)) - {"none", "ultralytics"})
KINDS = ("dense", "plain", "two-stage")
# Methods whose formula is zero when the student gives exactly the teacher's outputs and features.
ZERO_AT_TEACHER = {"kd", "dkd", "cwd", "rkd", "pkd", "mimic", "crosskd", "maskd", "freekd"}
CASES = [(name, kind) for name in NAMES for kind in KINDS]


def pair(
    name: str, kind: str, student: Detector | None = None, **settings: object
) -> tuple[Method, Detector, Detector]:
    """Method, student and trained teacher; skips what the method refuses, after checking that it says so."""
    learner, teacher = student or make(kind), trained(kind)
    if name == "crosskd" and kind == "two-stage":
        with pytest.raises(MethodError, match="two-stage detectors lack"):
            build(name, learner, teacher)
        pytest.skip("not defined for two-stage detectors")
    if (
        name == "iou_aware" and kind == "two-stage"
    ):  # the toy's proposals have no boxes; see test_iou_aware for real ones
        with pytest.raises(MethodError, match="compares boxes anchor by anchor"):
            step(build(name, learner, teacher), learner, teacher, batch())
        pytest.skip("these proposals have no boxes")
    torch.manual_seed(3)
    return build(name, learner, teacher, **settings), learner, teacher


def total(terms: dict[str, Tensor]) -> Tensor:
    """Sum of the terms."""
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_gradient_reaches_student_and_helpers_and_never_the_teacher(name: str, kind: str) -> None:
    method, student, teacher = pair(name, kind)
    terms = step(method, student, teacher, batch())
    assert terms and all(t.ndim == 0 and t.dtype == torch.float32 and torch.isfinite(t) for t in terms.values())
    total(terms).backward()
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads) and any(g.abs().sum() > 0 for g in grads)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_terms_are_finite_float32_under_bf16_autocast(name: str, kind: str) -> None:
    method, student, teacher = pair(name, kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = step(method, student, teacher, batch())
    assert all(t.dtype == torch.float32 and torch.isfinite(t) for t in terms.values())
    total(terms).backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_trained_teacher_gives_another_loss_than_an_untrained_one(name: str, kind: str) -> None:
    method, student, teacher = pair(name, kind)
    data, untrained = batch(), make(kind, width=12)
    one, other = (step(copy.deepcopy(method), student, net, data) for net in (teacher, untrained))
    assert any(not torch.isclose(one[name], other[name], rtol=1e-3) for name in one)


@pytest.mark.parametrize(("name", "kind"), [c for c in CASES if c[0] in ZERO_AT_TEACHER])
def test_a_student_that_equals_the_teacher_has_nothing_to_learn(name: str, kind: str) -> None:
    method, student, teacher = pair(name, kind, twin(trained(kind)))
    assert abs(float(total(step(method, student, teacher, batch())).detach())) < 1e-5


@pytest.mark.parametrize("objects", [(0, 1), (0, 0), (1,)])
@pytest.mark.parametrize(("name", "kind"), [c for c in CASES if c[1] != "plain"])
def test_images_and_batches_without_boxes_work(name: str, kind: str, objects: tuple[int, ...]) -> None:
    method, student, teacher = pair(name, kind)
    terms = step(method, student, teacher, batch(objects=objects))
    total(terms).backward()
    assert all(torch.isfinite(t) for t in terms.values()) and total(terms) < 1e3
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_one_class_works(name: str, kind: str) -> None:
    pair(name, kind)
    student, teacher = make(kind, classes=1), trained(kind, classes=1)
    terms = step(build(name, student, teacher), student, teacher, batch(1))
    assert all(torch.isfinite(t) for t in terms.values()) and total(terms) > 0


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_sizes_may_change_from_step_to_step(name: str, kind: str) -> None:
    method, student, teacher = pair(name, kind)
    for size in (SIZE, 96, SIZE + 16):
        terms = step(method, student, teacher, batch(size=size))
        assert all(torch.isfinite(t) for t in terms.values())


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in CASES if k != "plain"])
def test_the_papers_variant_runs(name: str, kind: str) -> None:
    method = DETECTION_METHODS[name] if name in DETECTION_METHODS else METHODS[name]
    if "variant" not in method.__init__.__annotations__:
        pytest.skip("has no such variant")
    built, student, teacher = pair(name, kind, variant="paper")
    terms = step(built, student, teacher, batch())
    assert all(torch.isfinite(t) for t in terms.values()) and float(total(terms).detach()) > 0


def test_methods_join_and_name_their_terms() -> None:
    method, student, teacher = pair("pkd+crosskd+kd", "dense")
    assert set(step(method, student, teacher, batch())) == {
        "pkd.pkd",
        "crosskd.crosskd_class",
        "crosskd.crosskd_box",
        "kd.kd",
    }


def test_methods_for_segmentation_only_are_refused() -> None:
    student = make("dense")
    with pytest.raises(MethodError, match="not defined for detectors"):
        build("skd", student, student)


@pytest.mark.parametrize("name", list(DETECTION_METHODS))
def test_every_method_cites_its_paper_and_explains_its_parameters(name: str) -> None:
    method = DETECTION_METHODS[name]
    assert method.detection and method.citation and method.__doc__ and "Citation:" in method.__doc__
    documented = method.__doc__.partition("Args:")[2]
    parameters = [p for p in method.__init__.__annotations__ if p not in ("return", "context")]
    assert [p for p in parameters if f"\n        {p}: " not in documented] == []


def test_the_builtin_baseline_is_a_marker() -> None:
    student = make("dense")
    method = build("ultralytics", student, student)
    assert getattr(method, "builtin", False) and not getattr(build("kd", student, student), "builtin", False)
    with pytest.raises(MethodError, match="own trainer"):
        step(method, student, trained("dense", width=8), batch())


def test_helpers_are_trained_by_a_step() -> None:
    method, student, teacher = pair("crosskd+cwd", "dense")
    before = [p.detach().clone() for p in method.parameters()]
    optimizer = torch.optim.SGD([*student.parameters(), *method.parameters()], 1e-2)
    total(step(method, student, teacher, batch())).backward()
    optimizer.step()
    assert len(before) > 0 and all(
        not torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True) if b.ndim > 1
    )
    assert isinstance(method, nn.Module)
