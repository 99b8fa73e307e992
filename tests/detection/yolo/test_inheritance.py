"""Starting a small YOLOv8 from a large one: exact where both are alike, near the teacher where not, or refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medkd.core.errors import RunError
from medkd.detection.base import DetectorOutputs
from medkd.detection.inheritance import inherit
from medkd.detection.layers import chart_pair
from medkd.detection.letterbox import letterbox
from medkd.detection.tv.training import mean_average_precision
from medkd.detection.yolo import YoloDetector
from medkd.evaluation.detection.predictions import Boxes
from tests.detection.builders import radiograph
from tests.detection.yolo.builders import make
from tests.detection.yolo.smaller import tiny_yolo

Batch = tuple[Tensor, list[Tensor], list[Tensor]]


def _radiographs(first: int, count: int) -> Batch:
    images, boxes, classes = [], [], []
    for seed in range(first, first + count):
        pixels, drawn, kinds = radiograph(seed, 64, 48, 2)
        square, place = letterbox(pixels, 64)
        images.append(square)
        boxes.append(torch.from_numpy(place.forth(np.array(drawn))).float())
        classes.append(torch.tensor(kinds))
    return torch.stack(images), boxes, classes


def _settled(detector: YoloDetector, *, seed: int = 0) -> YoloDetector:
    """Running statistics, and scores that differ between places, without a training."""
    torch.manual_seed(seed)
    for branch in detector.head.cv3:
        nn.init.normal_(branch[-1].weight, std=0.3)
    for norm in (module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 0.3
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    detector.train()
    with torch.no_grad():
        for first in range(0, 120, 12):
            _outputs(detector, _radiographs(first, 12)[0])
    return detector.eval()


def _outputs(detector: YoloDetector, images: Tensor) -> Tensor:
    with torch.no_grad():
        found = detector.observe(images, DetectorOutputs(logits=torch.zeros(0)))
    assert found.distribution is not None
    return torch.cat([found.logits.flatten(1), found.distribution.flatten(1)], 1)


def _error(student: YoloDetector, teacher: YoloDetector) -> float:
    images = _radiographs(500, 8)[0]
    answer = _outputs(teacher, images)
    return float((_outputs(student.eval(), images) - answer).square().mean() / answer.var())


def test_a_student_of_the_teachers_shape_becomes_the_teacher() -> None:
    teacher, student = _settled(tiny_yolo(0.07, 0.67)), tiny_yolo(0.07, 0.67, seed=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    fits = inherit(student, teacher, _radiographs(0, 16)[0])
    convolutions = [name for name, module in student.named_modules() if isinstance(module, nn.Conv2d)]
    assert sorted(fit.layer for fit in fits) == sorted(name for name in convolutions if ".dfl." not in name)
    assert all(fit.explained > 0.999 for fit in fits)
    assert _error(student, teacher) < 1e-6
    for name, value in student.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(value, before[name], atol=1e-3, rtol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for net in (student, teacher) for m in net.modules())


def test_a_narrower_and_shallower_student_does_what_its_own_teacher_does() -> None:
    teachers = [_settled(tiny_yolo(0.125, 0.67, seed=seed), seed=seed) for seed in (0, 5)]
    students = [tiny_yolo(0.0625, seed=1) for _ in range(3)]
    images = _radiographs(0, 16)[0]
    for student, teacher in zip(students, teachers, strict=False):
        inherit(student, teacher, images)
    own, another, none = (_error(student, teachers[0]) for student in students)
    assert own < 0.5 * min(another, none)
    again = tiny_yolo(0.0625, seed=2)
    inherit(again, teachers[0], images)
    states = again.state_dict().items()
    assert all(torch.equal(value, students[0].state_dict()[name]) for name, value in states if value.ndim)


def _trained(steps: int) -> YoloDetector:
    detector = tiny_yolo(0.125, 0.67)
    optimizer = torch.optim.AdamW(detector.parameters(), 4e-3)
    for norm in (module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 0.1
    for step in range(steps):
        terms, _, _ = detector.train().losses(*_radiographs(8 * step, 8))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    return detector.eval()


def _precision(detector: YoloDetector) -> float:
    images, boxes, classes = _radiographs(9000, 32)
    found = [Boxes.of(d.boxes.float(), d.classes, d.scores.float()) for d in detector.eval().detect(images, most=100)]
    return mean_average_precision(found, [Boxes.of(b, c) for b, c in zip(boxes, classes, strict=True)], 2)


@pytest.mark.slow
def test_before_any_step_it_finds_what_a_random_one_does_not() -> None:
    teacher, student = _trained(150), tiny_yolo(0.0625, seed=1)
    random = _precision(student)
    inherit(student, teacher, _radiographs(0, 32)[0])
    assert random < 0.02 and _precision(student) > 0.5 * _precision(teacher) > 0.2


REFUSED: list[tuple[Callable[[], YoloDetector], Callable[[], YoloDetector], str]] = [
    (lambda: make("yolo11n"), lambda: make("yolov8n"), "yolo11n has a C3k2; choose yolov8n to yolov8x"),
    (lambda: tiny_yolo(0.125), lambda: tiny_yolo(0.0625), "nowhere wider than its teacher, but model.1.conv"),
    (lambda: tiny_yolo(0.0625, 0.67), lambda: tiny_yolo(0.125), "nowhere deeper than its teacher, but model.2.m.1"),
]


@pytest.mark.parametrize(("student", "teacher", "text"), REFUSED)
def test_pairs_that_do_not_fit_are_one_sentence(
    student: Callable[[], YoloDetector], teacher: Callable[[], YoloDetector], text: str
) -> None:
    with pytest.raises(RunError, match=rf"{text}.* use --init random\.$"):
        chart_pair(student(), teacher())
