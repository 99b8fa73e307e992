"""The first stage: what is learnt, from what, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.errors import MethodError, RunError
from medkd.core.features import Outputs, Target
from medkd.core.run import NetworkSpec
from medkd.distillation import Context, Distiller, build_method
from medkd.distillation.prompts.first_stage import SegmentationTeacher, labels_loss, token_overlap
from medkd.networks import build_network
from tests.distillation.toys import ToyNetwork, batch, context, pair_method, trained

NAMES = ("maskd", "freekd")


def fixed(rank: int = 2) -> list[tuple[Tensor, Target]]:
    """A few batches that stay the same."""
    torch.manual_seed(5)
    return [batch(rank) for _ in range(3)]


def test_overlap_equals_loops_over_pairs_of_tokens() -> None:
    masks, found = torch.rand(2, 3, 4, 5), []
    for image in masks:
        for i in range(3):
            for j in range(3):
                if i != j:
                    dot = float((image[i] * image[j]).sum())
                    found.append(2 * dot / (float(image[i].square().sum()) + float(image[j].square().sum())))
    assert float(token_overlap(masks)) == pytest.approx(sum(found) / len(found), rel=1e-5)
    assert token_overlap(masks[:, :1]) == 0 and float(token_overlap(masks[:, :1].expand(2, 4, 4, 5))) == pytest.approx(
        1.0
    )
    apart = torch.zeros(1, 2, 2)
    apart[0, 0, 0] = apart[0, 1, 1] = 1
    assert token_overlap(apart[..., None]) == 0


@pytest.mark.parametrize("regions", [False, True])
def test_the_task_loss_is_cross_entropy_and_dice_on_annotated_voxels(regions: bool) -> None:
    image, target = batch(2, regions, valid=True)
    logits, valid = torch.randn(2, 3, *image.shape[2:]), target.valid
    assert valid is not None
    keep = valid[:, 0]
    rows, labels = logits.movedim(1, -1)[keep], target.labels.movedim(1, -1)[keep]
    if regions:
        p, truth, ce = torch.sigmoid(rows), labels, F.binary_cross_entropy_with_logits(rows, labels)
    else:
        p, truth, ce = torch.softmax(rows, 1), F.one_hot(labels[:, 0], 3).float(), F.cross_entropy(rows, labels[:, 0])
    dice = torch.stack(
        [(2 * (p[:, c] * truth[:, c]).sum() + 1e-5) / (p[:, c].sum() + truth[:, c].sum() + 1e-5) for c in range(3)]
    )
    assert float(labels_loss(logits, target, regions)) == pytest.approx(float(ce + 1 - dice.mean()), rel=1e-4)


def test_a_segmentation_teacher_gives_its_own_maps_and_goes_on_from_others() -> None:
    teacher, (image, target) = trained(2, False), batch(2)
    teacher.remember = True
    seen = SegmentationTeacher(teacher, context(teacher, teacher, 2))
    maps = seen.features((image, target), ["dec1", "dec0"])
    whole = labels_loss(teacher(image), target, False)
    assert torch.allclose(seen.task_loss((image, target), maps), whole) and not maps["dec0"].requires_grad
    other = {"dec0": torch.zeros_like(maps["dec0"], requires_grad=True)}
    loss = seen.task_loss((image, target), other)
    loss.backward()
    assert (
        not torch.isclose(loss, whole)
        and other["dec0"].grad is not None
        and all(p.grad is None for p in teacher.parameters())
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rank", [2, 3])
def test_learning_lowers_the_loss_of_the_masked_teacher_and_leaves_the_teacher_alone(name: str, rank: int) -> None:
    teacher, batches = trained(rank, False), fixed(rank)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    losses = {}
    for iterations in (1, 40):
        torch.manual_seed(0)
        about = context(ToyNetwork(rank), teacher, rank)
        method = build_method(name, about, {f"{name}.iterations": iterations})
        start = {k: v.clone() for k, v in method.state_dict().items()}
        Distiller(teacher, method).prepare(b for _ in range(20) for b in batches)
        losses[iterations] = float(sum(_masked_loss(method, teacher, about, b) for b in batches))
        assert all(
            not torch.equal(v, start[k]) for k, v in method.state_dict().items() if k.endswith(("tokens", "banks"))
        )
        assert not any(p.requires_grad for p in method.prompts.parameters()) and not list(method.prompts.parameters())  # type: ignore[union-attr]
    assert losses[40] < losses[1] - 0.05
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def _masked_loss(method: Any, teacher: ToyNetwork, about: Context, data: tuple[Tensor, Target]) -> Tensor:
    """What the first stage minimises."""
    seen = SegmentationTeacher(teacher, about)
    maps = seen.features(data, [t.name for _, t in method.pairs])
    masked = {t.name: prompts(maps[t.name]) for prompts, (_, t) in zip(method.prompts, method.pairs, strict=True)}
    return (
        seen.task_loss(data, {n: m for n, (m, _) in masked.items()})
        + torch.stack([o for _, o in masked.values()]).sum()
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_same_batches_and_seed_give_the_same_masks(name: str) -> None:
    teacher, states = trained(2, False), []
    for _ in range(2):
        torch.manual_seed(0)
        method = build_method(name, context(ToyNetwork(2), teacher, 2), {f"{name}.iterations": 3})
        batches = fixed()
        torch.manual_seed(len(states))  # nothing random is left
        Distiller(teacher, method).prepare(batches)
        states.append({k: v for k, v in method.state_dict().items() if "prompts" in k})
    assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize("name", NAMES)
def test_what_was_learnt_comes_back_and_is_not_learnt_again(name: str) -> None:
    teacher, student = trained(2, False), ToyNetwork(2)
    one, other = (Distiller(teacher, build_method(name, context(student, teacher, 2))) for _ in range(2))
    assert one.needs_preparation
    one.prepare(fixed())
    other.load_state_dict(one.state_dict())
    assert not one.needs_preparation and not other.needs_preparation
    other.prepare(iter(()))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_refusals(name: str) -> None:
    teacher = trained(2, False)
    method = build_method(name, context(ToyNetwork(2), teacher, 2))
    features = torch.zeros(1, 4, 8, 8)
    with pytest.raises(MethodError, match="has not learnt its masks"):
        pair_method(name, 4, 4, 2)(
            Outputs(logits=features, features={"s": features}),
            Outputs(logits=features, features={"t": features}),
            Target(features),
        )
    with pytest.raises(MethodError, match="given none"):
        Distiller(teacher, method).prepare(iter(()))
    assert method.needs_preparation
    image, target = batch(2)
    with pytest.raises(MethodError, match="loss became nan"):
        Distiller(teacher, method).prepare([(image * float("nan"), target)])
    with pytest.raises(MethodError, match="which Conv2d does not offer"):
        Distiller(torch.nn.Conv2d(1, 3, 1), pair_method(name, 4, 4, 2))
    with pytest.raises(MethodError, match="at least 1"):
        build_method(name, context(ToyNetwork(2), teacher, 2), {f"{name}.iterations": 0})
    net = build_network(NetworkSpec(name="unet_tiny", in_channels=1, num_outputs=3, patch_size=(16, 16)))
    encoder = build_method(
        name,
        Context(
            student_taps=net.taps,
            teacher_taps=net.taps,
            num_outputs=3,
            regions=False,
            spacing=(1.0, 1.0),
            patch_size=(16, 16),
        ),
        {f"{name}.taps": "encoder"},
    )
    with pytest.raises(RunError, match="continues from"):
        Distiller(net, encoder).prepare(
            [(torch.zeros(1, 1, 16, 16), Target(torch.zeros(1, 1, 16, 16, dtype=torch.long)))]
        )
