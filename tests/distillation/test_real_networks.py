"""Two training steps of every method between real networks, in 2D and 3D, for classes and regions.

Of the two pairs of networks each case has one a day, and the other one the next day; both with ``MEDKD_ROWS=all``.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from medkd.core.errors import MethodError
from medkd.core.features import Progress, Target
from medkd.core.run import NetworkSpec
from medkd.distillation import METHODS, Context, Distiller, build_method
from medkd.networks import SegmentationNetwork, build_network
from tests.shares import of_today

OUTPUTS = 3
PAIRS = [("unet_tiny", "res_unet"), ("mednext_s", "segresnet")]  # students and teachers


def cases() -> list[tuple[str, int, bool, str, str]]:
    """Every method, rank and kind of labels with the pair of the day; half of a method's cases with either pair."""
    found = []
    for number, (name, rank, regions) in enumerate(product(METHODS, (2, 3), (False, True))):
        turned = (number // 2 + number) % 2
        found += [(name, rank, regions, *pair) for pair in of_today(PAIRS[::-1] if turned else PAIRS, 2)]
    return found


@cache
def network(name: str, rank: int) -> SegmentationNetwork:
    """A network for patches of 16 voxels per axis, built once."""
    torch.manual_seed(0)
    return build_network(NetworkSpec(name=name, in_channels=1, num_outputs=OUTPUTS, patch_size=(16,) * rank))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rank", "regions", "student", "teacher"), cases())
def test_two_steps_train_the_student_and_the_helpers(
    name: str, rank: int, regions: bool, student: str, teacher: str
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
