"""Two training steps of every method between real networks, in 2D and 3D, for classes and regions."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F

from medkd.core.errors import MethodError
from medkd.core.features import Progress, Target
from medkd.core.run import NetworkSpec
from medkd.distillation import METHODS, Context, Distiller, build_method
from medkd.networks import SegmentationNetwork, build_network

OUTPUTS = 3


@cache
def network(name: str, rank: int) -> SegmentationNetwork:
    """A network for patches of 16 voxels per axis, built once."""
    torch.manual_seed(0)
    return build_network(NetworkSpec(name=name, in_channels=1, num_outputs=OUTPUTS, patch_size=(16,) * rank))


@pytest.mark.slow
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize(("student", "teacher"), [("unet_tiny", "res_unet"), ("mednext_s", "segresnet")])
@pytest.mark.parametrize("name", list(METHODS))
def test_two_steps_train_the_student_and_the_helpers(
    name: str, student: str, teacher: str, rank: int, regions: bool
) -> None:
    learner, expert = network(student, rank), network(teacher, rank)
    size = (16,) * rank
    about = Context(
        student_taps=learner.taps,
        teacher_taps=expert.taps,
        num_outputs=OUTPUTS,
        regions=regions,
        spacing=(1.0,) * rank,
        patch_size=size,
    )
    if regions and name in ("nkd", "dkd"):
        with pytest.raises(MethodError, match="regions"):
            build_method(name, about)
        return
    distiller = Distiller(expert, build_method(name, about))
    if distiller.needs_preparation:
        image = torch.randn(2, 1, *size)
        labels = (image > 0).float().expand(-1, OUTPUTS, *size) if regions else (image > 0).long()
        distiller.prepare([(image, Target(labels))])
    optimizer = torch.optim.SGD([*learner.parameters(), *distiller.parameters()], 1e-3)
    before = [p.detach().clone() for p in distiller.parameters()]
    for step in range(2):
        image = torch.randn(2, 1, *size)
        labels = (image > 0).float().expand(-1, OUTPUTS, *size) if regions else (image > 0).long() + (image > 1).long()
        with distiller.student_capture(learner):
            logits = learner(image)
        supervised = (
            F.binary_cross_entropy_with_logits(logits, labels) if regions else F.cross_entropy(logits, labels[:, 0])
        )
        terms = distiller.terms(image, logits, Target(labels, None, Progress(step, 2, step)))
        loss = supervised + sum(terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    assert all(torch.isfinite(p).all() for p in learner.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, distiller.parameters(), strict=True)) or not before
