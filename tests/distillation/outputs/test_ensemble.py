"""The mean of the teacher over mirrorings and folds, against slow loops, and when it is asked for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Progress, Target
from medkd.distillation import Distiller, Method, build_method
from medkd.distillation.averaging import logits_of
from tests.distillation.toys import ToyNetwork, batch, context, step, trained

WANTED, PLAIN = Progress(step=3), Progress(step=0)  # with a share of a quarter


def _context(
    student: nn.Module, teacher: nn.Module, rank: int, regions: bool = False, axes: tuple[int, ...] | None = None
):  # type: ignore[no-untyped-def]
    return replace(context(student, teacher, rank, regions), mirror_axes=tuple(range(rank)) if axes is None else axes)


def _probabilities(logits: Tensor, regions: bool) -> Tensor:
    return logits.sigmoid() if regions else logits.softmax(1)


def _slow_mean(networks: list[nn.Module], image: Tensor, regions: bool) -> Tensor:
    """Mean probabilities over all subsets of mirrored axes of all networks."""
    rank, found = image.ndim - 2, []
    for network in networks:
        for mask in range(2**rank):
            axes = [2 + a for a in range(rank) if mask >> a & 1]
            found.append(_probabilities(network(image.flip(axes)), regions).flip(axes))
    return torch.stack(found).double().mean(0)


class Spy(nn.Module):
    """Counts the forwards of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x: Tensor) -> Tensor:
        """The network's output."""
        self.calls += 1
        return self.network(x)


class Probe(Method):
    """Wants the average and keeps what it gets."""

    outputs_only = True
    seen: Outputs | None = None

    def wants_average(self, progress: Progress) -> bool:
        """Always."""
        return True

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Nothing to learn."""
        self.seen = teacher
        return {"probe": student.logits.sum() * 0}


@pytest.mark.parametrize(("rank", "regions", "folds"), [(2, False, 1), (3, False, 2), (2, True, 2)])
def test_the_average_is_the_mean_of_probabilities_over_mirrorings_and_folds(
    rank: int, regions: bool, folds: int
) -> None:
    teacher, other = trained(rank, regions), ToyNetwork(rank)
    image, target = batch(rank, regions)
    probe = Probe(_context(teacher, teacher, rank, regions))
    distiller = Distiller(teacher, probe, partners=[other] if folds == 2 else [])
    distiller.terms(image, torch.zeros(2, 3, *image.shape[2:]), target)
    assert probe.seen is not None and probe.seen.average is not None
    with torch.no_grad():
        expected = _slow_mean([teacher, other][:folds], image, regions)
        assert torch.allclose(probe.seen.logits, teacher(image), atol=1e-6)
    assert torch.allclose(_probabilities(probe.seen.average, regions).double(), expected, atol=1e-5)
    assert all(not p.requires_grad for p in other.parameters()) or folds == 1


@pytest.mark.parametrize("regions", [False, True])
def test_loss_is_the_divergence_from_the_mean_at_some_steps_and_that_of_kd_at_the_others(regions: bool) -> None:
    student, teacher = ToyNetwork(2), trained(2, regions)
    image, target = batch(2, regions, valid=True)
    about = _context(student, teacher, 2, regions)
    settings = {"ensemble.weight": "2", "ensemble.temperature": "3"}
    method = build_method("ensemble", about, settings)
    plain = step(method, student, teacher, image, replace(target, progress=PLAIN))["ensemble"]
    kd = build_method("kd", about, {"kd.weight": "2", "kd.temperature": "3"})
    assert torch.allclose(plain, step(kd, student, teacher, image, target)["kd"])
    found = step(method, student, teacher, image, replace(target, progress=WANTED))["ensemble"]
    with torch.no_grad():
        q, p = logits_of(_slow_mean([teacher], image, regions).float(), regions) / 3, student(image) / 3
    q, p = (torch.stack([z.sigmoid(), 1 - z.sigmoid()]) if regions else z.softmax(1)[None] for z in (q, p))
    voxels = (q * (q / p).log()).sum((0, 2))
    assert target.valid is not None
    assert float(found) == pytest.approx(2 * 9 * float(voxels[target.valid[:, 0]].detach().mean()), rel=1e-4)
    assert float(found) != pytest.approx(float(plain), rel=1e-3)


@pytest.mark.parametrize(("share", "expected"), [(1.0, 12), (0.5, 6), (0.25, 3), (0.3, 3), (0.01, 0)])
def test_the_share_of_the_steps_is_kept_and_evenly_spread(share: float, expected: int) -> None:
    method = build_method("ensemble", _context(ToyNetwork(2), ToyNetwork(2), 2), {"ensemble.share": share})
    wanted = [method.wants_average(Progress(step=i)) for i in range(12)]
    assert sum(wanted) == expected
    places = [i for i, w in enumerate(wanted) if w]
    gaps = [b - a for a, b in pairwise(places)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_forwards_are_spent_only_where_the_mean_is_wanted() -> None:
    student, spy, partner = ToyNetwork(2), Spy(trained(2, False)), Spy(ToyNetwork(2))
    about = _context(student, spy.network, 2)
    distiller = Distiller(spy, build_method("ensemble", about), partners=[partner])
    image, target = batch(2)
    for progress, calls in ((PLAIN, (1, 0)), (WANTED, (5, 4))):
        with distiller.student_capture(student):
            logits = student(image)
        distiller.terms(image, logits, replace(target, progress=progress))
        assert (spy.calls, partner.calls) == calls


def test_other_methods_of_a_composition_see_the_plain_pass_and_may_continue_from_it() -> None:
    student, teacher = ToyNetwork(3), trained(3, False)
    image, target = batch(3)
    target = replace(target, progress=WANTED)
    about = _context(student, teacher, 3)
    method = build_method("ensemble+kd+crosskd", about)
    together = step(method, student, teacher, image, target)
    for part in ("kd", "crosskd"):
        single = build_method(part, about)
        single.load_state_dict(method.parts[part].state_dict())  # type: ignore[index]
        alone = step(single, student, teacher, image, target)
        assert all(torch.allclose(together[f"{part}.{key}"], value) for key, value in alone.items())
    assert not torch.allclose(together["ensemble.ensemble"], together["kd.kd"], rtol=1e-3)


def test_another_teacher_gives_another_loss_and_only_the_student_gets_gradient() -> None:
    student = ToyNetwork(2)
    image, target = batch(2)
    losses = []
    for teacher in (trained(2, False), ToyNetwork(2, 6)):
        method = build_method("ensemble", _context(student, teacher, 2))
        losses.append(step(method, student, teacher, image, replace(target, progress=WANTED))["ensemble"])
    assert not torch.isclose(*losses, rtol=1e-2)
    losses[0].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is None for p in trained(2, False).parameters())


def test_cached_outputs_need_no_teacher_and_are_the_target_at_every_step() -> None:
    student = ToyNetwork(2)
    image, target = batch(2)
    cached = torch.randn(2, 3, *image.shape[2:])
    distiller = Distiller(None, build_method("ensemble", _context(student, student, 2)), cached=True)
    kd = Distiller(None, build_method("kd", _context(student, student, 2)), cached=True)
    logits = student(image)
    for progress in (PLAIN, WANTED):
        found = distiller.terms(image, logits, replace(target, progress=progress), cached)["ensemble"]
        assert torch.allclose(found, kd.terms(image, logits, target, cached)["kd"])
    with pytest.raises(MethodError, match=r"^at needs more of the teacher than its outputs"):
        Distiller(None, build_method("kd+at", context(student, trained(2, False), 2)), cached=True)


@pytest.mark.parametrize(
    ("setting", "value"), [("share", "0"), ("share", "1.5"), ("weight", "-1"), ("temperature", "0")]
)
def test_senseless_settings_are_refused(setting: str, value: str) -> None:
    with pytest.raises(MethodError, match=f"ensemble.{setting}"):
        build_method("ensemble", _context(ToyNetwork(2), ToyNetwork(2), 2), {f"ensemble.{setting}": value})
