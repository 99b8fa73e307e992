"""CrossKD: the student's feature through the teacher's remaining layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Target
from medkd.core.run import NetworkSpec
from medkd.distillation import Capture, Context, Distiller, build_method
from medkd.distillation.features.crosskd import align
from medkd.networks import build_network
from tests.distillation.toys import ToyNetwork, batch, context, pair_method, step, trained


def test_equals_the_teachers_rest_applied_by_hand() -> None:
    student, teacher = ToyNetwork(3, 6), trained(3, False)
    image, target = batch(3)
    method = build_method("crosskd", context(student, teacher, 3), {"crosskd.temperature": 2.0, "crosskd.weight": 0.5})
    with Capture(student, ("dec0",)) as capture:
        student(image)
    with torch.no_grad(), Capture(teacher, ("dec0",)) as taught:
        logits = teacher(image)
    s, t = capture.features["dec0"], taught.features["dec0"]
    aligned = torch.empty_like(s)
    for c in range(s.shape[1]):
        aligned[:, c] = (s[:, c] - s[:, c].mean()) / (s[:, c].std() + 1e-6) * t[:, c].std() + t[:, c].mean()
    crossed = teacher.out(F.relu(aligned))
    expected = F.kl_div(torch.log_softmax(crossed / 2, 1), torch.softmax(logits / 2, 1), reduction="none").sum(1).mean()
    assert torch.allclose(step(method, student, teacher, image, target)["crosskd"], 0.5 * 4 * expected, rtol=1e-4)


def test_the_students_layers_after_the_tap_and_the_teacher_receive_no_gradient() -> None:
    student, teacher = ToyNetwork(3), trained(3, False)
    image, target = batch(3)
    step(build_method("crosskd", context(student, teacher, 3)), student, teacher, image, target)["crosskd"].backward()
    assert student.out.weight.grad is None and student.first.weight.grad is not None
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("rank", [2, 3])
def test_works_between_real_networks(rank: int) -> None:
    size = (16,) * rank
    student, teacher = (
        build_network(NetworkSpec(name=name, in_channels=1, num_outputs=3, patch_size=size))
        for name in ("unet_tiny", "segresnet")
    )
    about = Context(
        student_taps=student.taps,
        teacher_taps=teacher.taps,
        num_outputs=3,
        regions=False,
        spacing=(1.0,) * rank,
        patch_size=size,
    )
    distiller = Distiller(teacher, build_method("crosskd", about))
    x = torch.randn(1, 1, *size)
    with distiller.student_capture(student):
        logits = student(x)
    distiller.terms(x, logits, Target(torch.zeros(1, 1, *size, dtype=torch.long)))["crosskd"].backward()
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())


def test_alignment_gives_the_teachers_mean_and_spread() -> None:
    s, t = torch.randn(2, 3, 5, 5) * 4 + 1, torch.randn(2, 3, 6, 6) * 0.3 - 2
    found = align(s, t).transpose(0, 1).flatten(1)
    wanted = t.transpose(0, 1).flatten(1)
    assert torch.allclose(found.mean(1), wanted.mean(1), atol=1e-5) and torch.allclose(
        found.std(1), wanted.std(1), rtol=1e-4
    )


def test_a_teacher_that_cannot_be_continued_is_refused() -> None:
    with pytest.raises(MethodError, match="which Conv3d does not offer"):
        Distiller(torch.nn.Conv3d(1, 3, 1), pair_method("crosskd", 4, 4))
    features = torch.zeros(1, 4, 2, 2, 2)
    with pytest.raises(MethodError, match="can be continued"):
        pair_method("crosskd", 4, 4)(
            Outputs(logits=features, features={"s": features}),
            Outputs(logits=features, features={"t": features}),
            Target(features),
        )
