"""A step of a detector lets its host wait at most twice; the losses are torchvision's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou, generalized_box_iou_loss

from medkd.detection.base import DetectionTarget, DetectorOutputs
from medkd.detection.distiller import DetectorDistiller
from medkd.detection.methods import DETECTION_METHODS
from medkd.detection.tv import faster_rcnn, proposals
from medkd.detection.tv.assign import match_overlap
from medkd.detection.tv.grid import boxes_from_deltas
from medkd.detection.tv.losses import overlap_loss
from medkd.distillation import build_method
from tests.detection.toys import context
from tests.detection.tv.builders import DENSE, TOWERS, batch, make, narrow  # noqa: F401 - a fixture
from tests.networks.fake_cuda import CountSyncs

MOST = 2


def boxes(count: int, seed: int) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * 60
    return torch.cat([corners.amin(1), corners.amax(1) + 0.5], 1)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("name", DENSE)
def test_a_step_waits_at_most_twice(name: str, empty: bool) -> None:
    detector = make(name).train()
    data = batch(empty=empty)
    with CountSyncs() as syncs:
        terms, _, _ = detector.losses(*data)
        torch.stack(list(terms.values())).sum().backward()
    assert syncs.total <= MOST, syncs.found


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("method", ["crosskd", "kd", "dkd", "cwd"])
@pytest.mark.parametrize("name", DENSE)
def test_a_distilled_step_waits_at_most_twice(name: str, method: str) -> None:
    if method == "crosskd" and name not in TOWERS:
        pytest.skip("it has no towers to cross")
    student, teacher = make(name).train(), make(name, seed=4)
    settings = {"crosskd.variant": "paper"} if method == "crosskd" else None
    built = build_method(method, context(student, teacher), settings, DETECTION_METHODS)
    distiller = DetectorDistiller(teacher, built, student.anchors)
    data = batch()
    with CountSyncs() as syncs:
        terms, outputs, target = student.losses(*data)
        extra = distiller.terms(data[0], outputs, target)
        torch.stack([*terms.values(), *extra.values()]).sum().backward()
    assert syncs.total <= MOST, syncs.found


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("images", [2, 5])
def test_a_step_of_faster_rcnn_waits_twice(images: int, empty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, (pixels, truth, kinds) = make("faster_rcnn_r18").train(), batch(empty=empty)
    data = pixels[:1].expand(images, -1, -1, -1), truth[:1] * images, kinds[:1] * images
    detector.losses(*data)  # torchvision's pooling learns its levels
    waits = {"asked": 0, "nms": 0}
    for name in waits:
        original = getattr(proposals, name)

        def counted(*args: Any, own: Any = original, key: str = name) -> Any:
            waits[key] += 1
            return own(*args)

        monkeypatch.setattr(proposals, name, counted)
    monkeypatch.setattr(faster_rcnn, "asked", proposals.asked)
    with CountSyncs() as syncs:
        terms, outputs, _ = detector.losses(*data)
        torch.stack(list(terms.values())).sum().backward()
    assert syncs.total == 0, syncs.found
    assert waits == {"asked": 1, "nms": 1}
    assert all(bool(term.isfinite()) for term in terms.values()) and len(outputs.proposals) == images
    grads = [p.grad for p in detector.parameters() if p.grad is not None]
    assert grads and all(bool(grad.isfinite().all()) for grad in grads)


def test_draws_fill_up_with_negatives_and_every_place_is_as_likely() -> None:
    torch.manual_seed(2)
    positive, negative = torch.zeros(3, 40, dtype=torch.bool), torch.zeros(3, 40, dtype=torch.bool)
    positive[0, :10], negative[0, 10:35] = True, True  # more of both than wanted
    positive[1, 5], negative[1, 20:23] = True, True  # fewer
    negative[2] = True
    often = torch.zeros(40)
    for _ in range(400):
        found = proposals.drawn(positive, negative, 8, 0.5)
        assert found.counts.tolist() == [[4, 4], [1, 3], [0, 8]]
        for image, (first, second) in enumerate(found.counts.tolist()):
            own = found.positives[image, :first], found.negatives[image, :second]
            assert bool(positive[image, own[0]].all()) and bool(negative[image, own[1]].all())
            assert len(torch.cat(own).unique()) == first + second
        assert torch.equal(found.valid.sum(1), found.counts.sum(1))
        often[found.every[0][found.valid[0]]] += 1
    assert often[35:].sum() == 0
    assert float((often[:10] / 400 - 0.4).abs().max()) < 0.1  # 4 standard deviations
    assert float((often[10:35] / 400 - 0.16).abs().max()) < 0.075


def test_the_overlap_loss_is_torchvisions() -> None:
    first, second = boxes(200, 1).requires_grad_(), boxes(200, 2)
    ours = overlap_loss(first, second)
    (grad,) = torch.autograd.grad(ours.sum(), first)
    theirs = generalized_box_iou_loss(first, second, reduction="none")
    (wanted,) = torch.autograd.grad(theirs.sum(), first)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grad, wanted)


def test_the_matching_is_torchvisions() -> None:
    for seed in range(5):
        truth, anchors = boxes(4, seed), torch.cat([boxes(300, seed + 50), boxes(4, seed)])
        wanted = Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(truth, anchors))
        assert torch.equal(match_overlap(anchors, (), truth), wanted)


def test_the_papers_crosskd_divides_boxes_by_positives_and_has_a_centreness() -> None:
    student, teacher = make("atss_r18"), make("atss_r18", seed=4)
    data = batch()
    found = {}
    for variant in ("default", "paper"):
        built = build_method("crosskd", context(student, teacher), {"crosskd.variant": variant}, DETECTION_METHODS)
        _, outputs, target = student.losses(*data)
        found[variant] = DetectorDistiller(teacher, built).terms(data[0], outputs, target)
    assert isinstance(outputs, DetectorOutputs) and isinstance(target, DetectionTarget)
    own, paper = found["default"], found["paper"]
    positive = target.labels[:, 0] >= 0
    seen = teacher.observe(data[0], outputs)
    certainty = seen.logits.sigmoid().amax(1)[target.labels[:, 0] != -2].sum().clamp(min=1)
    torch.testing.assert_close(paper["crosskd_class"], own["crosskd_class"])
    torch.testing.assert_close(paper["crosskd_box"] * positive.sum(), own["crosskd_box"] * certainty)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(
        outputs.centerness[positive], seen.centerness[positive].sigmoid()
    )
    torch.testing.assert_close(paper["crosskd_centerness"], wanted)
    assert "crosskd_centerness" not in own


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_boxes_from_deltas_are_torchvisions(weights: tuple[float, ...]) -> None:
    anchors = boxes(7, 0)
    raw = 3 * torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(1))
    raw[0, 0, 2] = 900.0  # is held back
    coder = BoxCoder(weights)
    expected = torch.stack([coder.decode_single(one, anchors) for one in raw])
    torch.testing.assert_close(boxes_from_deltas(raw, anchors, weights), expected)
