"""Students of another plan than their teacher's: which layers stand for each other, and what a start is worth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.networks import SegmentationNetwork, build_network
from medkd.networks.inheritance import inherit
from medkd.networks.inheritance_twins import counterparts, without_counterpart
from tests.networks.checks import architecture, small
from tests.networks.test_inheritance import PLANS, _scene, _trained


def _student(name: str = "plain_unet", rank: int = 2, *, stages: int = 3, outputs: int = 3, **changes: Any) -> Any:
    """A student of half the channels of the plan, cut to some stages."""
    plan = replace(architecture(rank), **PLANS[name])
    plan = replace(
        plan,
        features_per_stage=plan.features_per_stage[:stages],
        kernel_sizes=plan.kernel_sizes[:stages],
        strides=plan.strides[:stages],
        blocks_encoder=plan.blocks_encoder[:stages],
        blocks_decoder=plan.blocks_decoder[len(plan.blocks_decoder) - stages + 1 :],
    )
    torch.manual_seed(1)
    spec = small(name, rank, outputs=outputs, architecture=replace(plan, **changes), width_divisor=2)
    return build_network(spec)


def _images(rank: int, size: tuple[int, ...], count: int = 6) -> list[Tensor]:
    crop = tuple(slice(0, side) for side in size)
    return [_scene(rank, seed)[0][(..., *crop)] for seed in range(count)]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("stages", [2, 3])
def test_fewer_stages_and_another_patch(name: str, stages: int) -> None:
    teacher, started, random = _trained(2, name=name), _student(name, stages=stages), _student(name, stages=stages)
    sizes = (14, 12) if stages == 2 else (16, 16)
    fits = inherit(started, teacher, _images(2, sizes))
    assert without_counterpart(started, teacher) == ()  # type: ignore[arg-type]
    assert len({fit.layer for fit in fits}) == len(fits) == len(counterparts(started, teacher))  # type: ignore[arg-type]
    new = torch.cat([_scene(2, seed)[0] for seed in range(60, 64)])
    with torch.no_grad():
        answer = teacher(new)
        errors = [float((student(new) - answer).square().mean() / answer.var()) for student in (started, random)]
    assert errors[0] < 0.5 * errors[1]


def test_levels_stand_for_each_other_that_see_the_image_at_one_resolution() -> None:
    teacher = _trained(2)
    twins = counterparts(_student(stages=2), teacher)  # type: ignore[arg-type]
    found = {path: layer.conv for path, layer in twins.items()}
    assert found["encoder.stages.1.0.convs.1.conv"] == "encoder.stages.1.0.convs.1.conv"
    assert found["decoder.transpconvs.0"] == "decoder.transpconvs.1"
    assert found["decoder.seg_layers.0"] == "decoder.seg_layers.1"
    assert found["decoder.stages.0.convs.1.conv"] == "decoder.stages.1.convs.1.conv"


def test_other_strides_leave_what_has_no_counterpart_random() -> None:
    teacher, student = _trained(2), _student(strides=((1, 1), (2, 2), (1, 2)))  # its second stage is at no level
    names = without_counterpart(student, teacher)  # type: ignore[arg-type]
    levels = {name for name in names if not name.startswith("encoder.stages.1.")}
    assert len(levels) < len(names) and all(name.startswith("decoder.") and ".0" in name for name in levels)
    before = {name: value.clone() for name, value in student.net.named_parameters()}
    fits = {fit.layer for fit in inherit(student, teacher, _images(2, (16, 16)))}
    assert fits.isdisjoint(names) and fits | set(names) == _convolutions(student)
    for name, value in student.net.named_parameters():
        conv = name.rpartition(".")[0]
        if conv in names:
            assert torch.equal(value, before[name])


def _convolutions(network: Any) -> set[str]:
    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    return {name for name, module in network.net.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize(("outputs", "same"), [(5, True), (3, False)])
def test_heads_of_other_labels_stay_random(outputs: int, same: bool) -> None:
    teacher, student = _trained(2), _student(outputs=outputs)
    heads = {name: value.clone() for name, value in student.net.named_parameters() if "seg_layers" in name}
    fits = inherit(student, teacher, _images(2, (16, 16)), same_labels=same)
    assert without_counterpart(student, teacher, same_labels=same) == (  # type: ignore[arg-type]
        "decoder.seg_layers.0",
        "decoder.seg_layers.1",
    )
    assert not any("seg_layers" in fit.layer for fit in fits)
    assert all(torch.equal(value, heads[name]) for name, value in student.net.named_parameters() if name in heads)
    assert fits[-1].explained > 0.5


def test_more_blocks_than_the_teachers_leave_the_first_ones_random() -> None:
    teacher = _trained(2)
    student = _student(blocks_encoder=(3, 2, 2))
    assert without_counterpart(student, teacher) == ("encoder.stages.0.0.convs.0.conv",)  # type: ignore[arg-type]


def _steps(network: SegmentationNetwork, count: int) -> float:
    """The loss on new scenes after some steps."""
    optimizer = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9)
    weight = torch.tensor([0.2, 1, 1])
    for step in range(count):
        image, labels = _scene(2, 300 + step)
        optimizer.zero_grad()
        F.cross_entropy(network(image), labels, weight=weight).backward()
        optimizer.step()
    with torch.no_grad():
        losses = [F.cross_entropy(network(x), y, weight=weight) for x, y in (_scene(2, s) for s in range(80, 92))]
    return float(torch.stack(losses).mean())


def test_a_residual_student_is_better_than_a_random_one_after_as_many_steps() -> None:
    teacher = _trained(2, name="resenc_unet_m")
    started, random = _student("resenc_unet_m"), _student("resenc_unet_m")
    inherit(started, teacher, _images(2, (16, 16)))
    for steps in (0, 10):
        assert _steps(started.eval(), steps) < 0.9 * _steps(random.eval(), steps)
