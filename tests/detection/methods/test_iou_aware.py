"""FourierKD's loss on the head against a loop over anchors in the form of its code."""

from __future__ import annotations

from math import exp, log
from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

import medkd.detection.tv  # noqa: F401 - enters its detectors
from medkd.core.errors import MethodError
from medkd.detection.base import DETECTORS, DetectionTarget, Detector, DetectorOutputs, DetectorSpec
from medkd.detection.distiller import DetectorDistiller
from medkd.detection.methods import DETECTION_METHODS
from medkd.distillation import build_method
from tests.detection.toys import batch, context, make

ANCHORS = 7


def boxes(seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    corner = torch.rand(2, ANCHORS, 2) * 20
    return torch.cat((corner, corner + 4 + torch.rand(2, ANCHORS, 2) * 20), -1)


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def expected(ours: Any, theirs: Any, our_boxes: Any, their_boxes: Any, labels: torch.Tensor, left_out: int) -> float:
    total, found = 0.0, 0
    for image in range(labels.shape[0]):
        for anchor in range(ANCHORS):
            label = int(labels[image, anchor])
            found += label >= 0
            if label == left_out:
                continue
            overlap = float(box_iou(our_boxes[image, anchor][None], their_boxes[image, anchor][None]))
            for k in range(ours.shape[1]):
                z = float(ours[image, k, anchor])
                q = overlap * sigmoid(float(theirs[image, k, anchor])) if label >= 0 else 0.0
                p = sigmoid(z)
                entropy = -(q * log(p) + (1 - q) * log(1 - p))
                total += entropy * (q if q > 0 else 0.75 * abs(p - q) ** 2)
    return 1.5 * total / max(found, 1)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_loss_is_the_varifocal_one_of_a_slow_loop(classes: int) -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.randn(2, classes, ANCHORS, dtype=torch.float64) for _ in range(2))
    ours.requires_grad_()
    labels = torch.tensor([[0, -1, -1, -2, classes - 1, -1, -1], [-1, -1, 0, -1, -2, -1, 0]])
    mine, other = boxes(1).double(), boxes(2).double()
    other[0, 0] = mine[0, 0]
    method = build_method("iou_aware", context(make("dense", classes), make("dense", classes)), own=DETECTION_METHODS)
    found = method(
        DetectorOutputs(logits=ours, boxes=mine),
        DetectorOutputs(logits=theirs, boxes=other),
        DetectionTarget(labels[:, None]),
    )["iou_aware"]
    assert found.item() == pytest.approx(expected(ours.detach(), theirs, mine, other, labels, -2), rel=1e-9)
    (gradient,) = torch.autograd.grad(found, ours)
    assert bool((gradient[:, :, labels[0] == -2][0] == 0).all()) and bool((gradient != 0).any())


def test_a_batch_without_boxes_teaches_to_find_none() -> None:
    method = build_method("iou_aware", context(make("dense", 1), make("dense", 1)), own=DETECTION_METHODS)
    logits = torch.zeros(2, 1, ANCHORS, requires_grad=True)
    labels = torch.full((2, 1, ANCHORS), -1)
    outputs = DetectorOutputs(logits=logits, boxes=boxes(1))
    loss = method(outputs, DetectorOutputs(logits=logits.detach(), boxes=boxes(2)), DetectionTarget(labels))[
        "iou_aware"
    ]
    assert float(loss) == pytest.approx(1.5 * 2 * ANCHORS * 0.75 * 0.25 * log(2), rel=1e-5)


def detector(name: str, seed: int) -> Detector:
    torch.manual_seed(seed)
    return DETECTORS[name].build(DetectorSpec(name, ("a", "b"), 64))


@pytest.mark.parametrize("name", ["retinanet_r18", "faster_rcnn_r18", "gfl_r18"])
def test_detectors_of_one_kind_teach_and_the_backbone_learns(name: str) -> None:
    student, teacher = detector(name, 0), detector(name, 1)
    images, found, classes = batch(classes=2, size=64)
    method = build_method("iou_aware", context(student, teacher), own=DETECTION_METHODS)
    distiller = DetectorDistiller(teacher, method, student.anchors)
    _, outputs, target = student.losses(images, found, classes)
    if student.two_stage:
        assert outputs.objectness is not None and target.objects is not None
        assert outputs.objectness.shape == target.objects.shape
        assert int((target.objects > 0).sum()) > 0
    (term,) = distiller.terms(images, outputs, target).values()
    term.backward()
    assert float(term) > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert any(bool((p.grad != 0).any()) for p in student.parameters() if p.grad is not None)


def test_heads_of_two_kinds_are_refused() -> None:
    student, teacher = detector("retinanet_r18", 0), detector("faster_rcnn_r18", 1)
    method = build_method("iou_aware", context(student, teacher), own=DETECTION_METHODS)
    with pytest.raises(MethodError, match="compares class scores"):
        DetectorDistiller(teacher, method, student.anchors)
