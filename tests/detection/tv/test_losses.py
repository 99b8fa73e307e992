from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou

from medkd.detection.base import DetectorOutputs
from medkd.detection.tv.assign import Assignment
from medkd.detection.tv.losses import centreness, distribution_focal_loss, expectation, quality_focal_loss
from tests.detection.tv.builders import batch, make


def test_quality_focal_loss_is_the_formula_summed() -> None:
    logits, quality = torch.randn(7, 3), torch.rand(7, 3) * (torch.rand(7, 3) > 0.5)
    total = 0.0
    for z, y in zip(logits.flatten().tolist(), quality.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        total += abs(p - y) ** 2 * -((1 - y) * math.log(1 - p) + y * math.log(p))
    assert float(quality_focal_loss(logits, quality)) == pytest.approx(total, rel=1e-5)


def test_distribution_focal_loss_is_the_formula_and_least_where_the_mass_is_right() -> None:
    logits, target = torch.randn(5, 4, 17), torch.rand(5, 4) * 15.9
    found = distribution_focal_loss(logits, target)
    for i in range(5):
        for side in range(4):
            p = logits[i, side].softmax(0).tolist()
            y = float(target[i, side])
            low = math.floor(y)
            expected = -((low + 1 - y) * math.log(p[low]) + (y - low) * math.log(p[low + 1]))
            assert float(found[i, side]) == pytest.approx(expected, rel=1e-4)
    perfect = torch.full((17,), -30.0)
    perfect[3], perfect[4] = math.log(0.75), math.log(0.25)
    assert float(expectation(perfect)) == pytest.approx(3.25, abs=1e-4)
    best = float(distribution_focal_loss(perfect, torch.tensor(3.25)))
    assert best == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), abs=1e-4)
    assert all(float(distribution_focal_loss(torch.randn(17), torch.tensor(3.25))) > best for _ in range(20))


def test_centreness_is_one_in_the_middle_and_falls_to_the_edge() -> None:
    sides = torch.tensor([[5.0, 3, 5, 3], [2, 4, 8, 4], [1, 1, 9, 4]])
    assert centreness(sides).tolist() == pytest.approx([1.0, math.sqrt(2 / 8), math.sqrt(1 / 9 * 1 / 4)])


@pytest.mark.parametrize("name", ["gfl_r18", "atss_r18"])
def test_the_terms_equal_the_paper_written_out_slowly(name: str) -> None:
    detector = make(name).eval()
    torch.nn.init.normal_(detector.head.to_class.weight, std=0.03)
    images, boxes, classes = batch()
    terms, outputs, target = detector.losses(images, boxes, classes)
    anchors = detector.grid.anchors(outputs.levels, images.device)
    with torch.no_grad():
        expected = _slow(outputs, target.labels[:, 0], anchors, boxes, classes, generalized=name == "gfl_r18")
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(expected, rel=1e-3)


def _slow(
    outputs: DetectorOutputs,
    labels: torch.Tensor,
    anchors: torch.Tensor,
    boxes: list[torch.Tensor],
    classes: list[torch.Tensor],
    generalized: bool,
) -> dict[str, float]:
    assert outputs.boxes is not None
    quality, weights, overlaps, spreads, centre_terms = torch.zeros_like(outputs.logits), [], [], [], []
    for image, anchor in torch.nonzero(labels >= 0).tolist():
        kind = int(labels[image, anchor])
        truth = boxes[image][classes[image] == kind][0]
        found = outputs.boxes[image, anchor]
        x, y = ((anchors[anchor, :2] + anchors[anchor, 2:]) / 2).tolist()
        sides = [x - float(truth[0]), y - float(truth[1]), float(truth[2]) - x, float(truth[3]) - y]
        centre = math.sqrt(
            min(sides[0], sides[2]) / max(sides[0], sides[2]) * min(sides[1], sides[3]) / max(sides[1], sides[3])
        )
        overlaps.append(1 - float(generalized_box_iou(found[None], truth[None])))
        quality[image, kind, anchor] = float(box_iou(found[None], truth[None])) if generalized else 1.0
        if generalized:
            stride = next(lv.stride for lv in outputs.levels if lv.start <= anchor < lv.stop)
            weights.append(float(outputs.logits[image, :, anchor].sigmoid().max()))
            assert outputs.distribution is not None
            wanted = torch.tensor([min(max(s / stride, 0), 15.9) for s in sides])
            spreads.append(float(distribution_focal_loss(outputs.distribution[image, anchor], wanted).mean()))
        else:
            weights.append(centre)
            assert outputs.centerness is not None
            p = float(outputs.centerness[image, anchor].sigmoid())
            centre_terms.append(-(centre * math.log(p) + (1 - centre) * math.log(1 - p)))
    number, total = max(len(weights), 1), max(sum(weights), 1.0)
    box = 2 * sum(w * o for w, o in zip(weights, overlaps, strict=True)) / total
    if generalized:
        spread = 0.25 * sum(w * s for w, s in zip(weights, spreads, strict=True)) / total
        return {
            "class": float(quality_focal_loss(outputs.logits, quality)) / number,
            "box": box,
            "distribution": spread,
        }
    p = outputs.logits.sigmoid()
    focal = -(0.25 * quality * (1 - p) ** 2 * p.log() + 0.75 * (1 - quality) * p**2 * (1 - p).log())
    return {"class": float(focal.sum()) / number, "box": box, "centerness": sum(centre_terms) / number}


def test_retinanet_gives_no_gradient_to_anchors_that_are_left_out() -> None:
    detector = make("retinanet_r18")
    anchors = torch.rand(6, 4)
    labels = torch.tensor([[0, -1, -2, -2, 1, -1]])
    logits, boxes = torch.randn(1, 2, 6, requires_grad=True), torch.rand(1, 6, 4, requires_grad=True)
    terms = detector.terms(DetectorOutputs(logits=logits), boxes, anchors, Assignment(labels, torch.rand(1, 6, 4)))
    (terms["class"] + terms["box"]).backward()
    assert logits.grad is not None and boxes.grad is not None
    assert (logits.grad[0].abs().sum(0) > 0).tolist() == [True, True, False, False, True, True]
    assert (boxes.grad[0].abs().sum(1) > 0).tolist() == [True, False, False, False, True, False]
