"""What every method promises, for every method, in 2D and 3D, for softmax classes and sigmoid regions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from medkd.core.errors import MethodError
from medkd.core.features import Target
from medkd.distillation import METHODS, Distiller, Method, build_method
from tests.distillation.toys import ToyNetwork, batch, context, step, trained

# Methods that refuse regions, because their formula is not defined for them.
SOFTMAX_ONLY = {"nkd", "dkd"}
# Methods whose formula is zero when the student gives exactly the teacher's outputs and features.
ZERO_AT_TEACHER = {
    "none",
    "kd",
    "ensemble",
    "cwd",
    "at",
    "dkd",
    "dml",
    "dist",
    "skd",
    "ifvd",
    "rkd",
    "pkd",
    "mimic",
    "dcd",
    "recokd",
    "emkd",
    "cakd",
    "crosskd",
    "maskd",
    "freekd",
}
# Terms in which a prediction on a voxel without annotation changes the weight of others (a distance to it).
REACHES_ACROSS = {"soft_boundary"}
TAUGHT = [name for name in METHODS if name != "none"]
CASES = [(name, rank, regions) for name in TAUGHT for rank in (2, 3) for regions in (False, True)]


def pair(name: str, rank: int, regions: bool, student: nn.Module | None = None) -> tuple[Method, nn.Module, ToyNetwork]:
    """Method, student and trained teacher; skips what the method refuses, after checking that it says so."""
    student, teacher = student or ToyNetwork(rank, additive=False), trained(rank, regions)
    about = context(student, teacher, rank, regions)
    if regions and name in SOFTMAX_ONLY:
        with pytest.raises(MethodError, match="regions"):
            build_method(name, about)
        pytest.skip("not defined for regions")
    torch.manual_seed(3)
    return build_method(name, about), student, teacher


def total(terms: dict[str, Tensor]) -> Tensor:
    """Sum of the terms."""
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize(("name", "rank", "regions"), CASES)
@pytest.mark.parametrize("valid", [False, True])
def test_gradient_reaches_student_and_helpers_and_never_the_teacher(
    name: str, rank: int, regions: bool, valid: bool
) -> None:
    method, student, teacher = pair(name, rank, regions)
    terms = step(method, student, teacher, *batch(rank, regions, valid))
    assert terms and all(t.ndim == 0 and t.dtype == torch.float32 and torch.isfinite(t) for t in terms.values())
    total(terms).backward()
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads) and any(g.abs().sum() > 0 for g in grads)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(("name", "rank", "regions"), CASES)
def test_terms_are_finite_float32_under_bf16_autocast(name: str, rank: int, regions: bool) -> None:
    method, student, teacher = pair(name, rank, regions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = step(method, student, teacher, *batch(rank, regions))
    assert all(t.dtype == torch.float32 and torch.isfinite(t) for t in terms.values())
    total(terms).backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize(("name", "rank", "regions"), CASES)
def test_a_trained_teacher_gives_another_loss_than_an_untrained_one(name: str, rank: int, regions: bool) -> None:
    method, student, teacher = pair(name, rank, regions)
    image, target = batch(rank, regions)
    untrained = ToyNetwork(rank, 6)
    one, other = (step(copy.deepcopy(method), student, net, image, target) for net in (teacher, untrained))
    assert any(not torch.isclose(one[name], other[name], rtol=1e-4) for name in one)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", sorted(ZERO_AT_TEACHER - {"none"}))
def test_a_student_that_equals_the_teacher_has_nothing_to_learn(name: str, rank: int, regions: bool) -> None:
    student = copy.deepcopy(trained(rank, regions)).requires_grad_(True)
    method, student, teacher = pair(name, rank, regions, student)
    terms = step(method, student, teacher, *batch(rank, regions))
    assert abs(float(total(terms))) < 1e-5


@pytest.mark.parametrize(("name", "rank", "regions"), [c for c in CASES if METHODS[c[0]].outputs_only])
def test_voxels_without_annotation_do_not_matter(name: str, rank: int, regions: bool) -> None:
    method, _, _ = pair(name, rank, regions)
    image, target = batch(rank, regions, valid=True)
    valid = target.valid
    assert valid is not None

    class Fixed(nn.Module):
        """Logits that are given."""

        def __init__(self, logits: Tensor) -> None:
            super().__init__()
            self.logits = logits

        def forward(self, x: Tensor) -> Tensor:
            """The given logits."""
            return self.logits

    s, t = (torch.randn(2, 3, *image.shape[2:]) for _ in range(2))
    t2 = torch.where(valid, t, torch.flip(t, (1,)) * 2)
    s2 = torch.where(valid, s, s + torch.randn_like(s))
    labels = torch.where(valid, target.labels, torch.zeros_like(target.labels))
    blank = Target(labels, valid, target.progress)
    runs = (Distiller(Fixed(b), method).terms(image, a, blank) for a, b in ((s, t), (s2, t2)))
    first, second = ({k: float(v) for k, v in terms.items() if k not in REACHES_ACROSS} for terms in runs)
    assert first == pytest.approx(second, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in TAUGHT if "variant" in METHODS[name].__init__.__annotations__])
@pytest.mark.parametrize(("rank", "regions"), [(2, False), (3, False), (3, True)])
def test_the_papers_variant_runs(name: str, rank: int, regions: bool) -> None:
    _, student, teacher = pair(name, rank, regions)
    method = build_method(name, context(student, teacher, rank, regions), {f"{name}.variant": "paper"})
    terms = step(method, student, teacher, *batch(rank, regions))
    assert all(torch.isfinite(t) for t in terms.values()) and float(total(terms)) != 0.0


@pytest.mark.parametrize("name", list(METHODS))
def test_helpers_come_back_from_their_state(name: str) -> None:
    method, student, teacher = pair(name, 3, False)
    again, _, _ = pair(name, 3, False)
    for p in again.parameters():
        nn.init.zeros_(p)
    distiller = Distiller(teacher, again)
    distiller.load_state_dict(Distiller(teacher, method).state_dict())
    image, target = batch(3)
    first = {k: float(v) for k, v in step(method, student, teacher, image, target).items()}
    assert first == pytest.approx({k: float(v) for k, v in step(again, student, teacher, image, target).items()})


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_cites_its_paper_and_explains_its_parameters(name: str) -> None:
    method = METHODS[name]
    assert method.citation and method.__doc__ and (name == "none" or "Citation:" in method.__doc__)
    documented = method.__doc__.partition("Args:")[2]
    parameters = [p for p in method.__init__.__annotations__ if p not in ("return", "context")]
    assert [p for p in parameters if f"\n        {p}: " not in documented] == []
