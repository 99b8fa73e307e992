"""Two training steps of every detector with every method that is defined for it; those that are not refuse with one
sentence. Of the detectors that are much like one another an eighth is tried each day, all with ``MEDKD_ROWS=all``.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import medkd.detection.tv
import medkd.detection.yolo  # noqa: F401 - both enter their detectors into the registry
from medkd.core.errors import MethodError
from medkd.core.features import Progress
from medkd.detection.base import DETECTORS, Detector, DetectorOutputs, DetectorSpec
from medkd.detection.distiller import DetectorDistiller
from medkd.detection.methods import DETECTION_METHODS
from medkd.distillation import METHODS
from tests.detection.toys import Batch, batch, context
from tests.detection.tv.builders import few
from tests.shares import of_today

SIZE = 64
CLASSES = ("a", "b", "c")
NAMES = sorted(({n for n in METHODS if METHODS[n].detection} | set(DETECTION_METHODS)) - {"none", "ultralytics"})
ON_SCORES = {"kd", "dkd", "crosskd", "iou_aware"}
# Student → teacher: where it can be, with another kind of head, of the same number of anchors per cell.
FAST = {
    "yolov8n": "yolo26n",
    "yolo11n": "yolov8n",
    "yolo26n": "yolo11n",
    "yolov8_r18": "yolov8n",
    "retinanet_r18": "retinanet_r18",
    "fcos_r18": "gfl_r18",
    "gfl_r18": "atss_r18",
    "atss_r18": "fcos_r18",
    "reppoints_r18": "reppoints_r18",
    "faster_rcnn_r18": "faster_rcnn_r18",
}
MIXED = [
    ("yolov8n", "faster_rcnn_r18"),
    ("faster_rcnn_r18", "yolov8n"),
    ("retinanet_r18", "fcos_r18"),
    ("retinanet_r18", "reppoints_r18"),
]


@cache
def built(name: str) -> Detector:
    """A detector with random weights, built once."""
    torch.manual_seed(0)
    detector = DETECTORS[name].build(DetectorSpec(name, CLASSES, SIZE))
    if detector.two_stage:
        few(detector)
    return detector


@cache
def teacher(name: str) -> Detector:
    """Another detector of the name, with statistics of its normalisation that fit its weights, so that its maps
    vary.
    """
    net = copy.deepcopy(built(name))
    torch.manual_seed(1)
    for parameter in net.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 0.5
    net.train()
    with torch.no_grad():
        for _ in range(4):
            data = data_of()
            net.observe(data[0], DetectorOutputs(logits=torch.zeros(2, 1), proposals=tuple(data[1])))
    return net.eval().requires_grad_(False)


def data_of() -> Batch:
    """Two images, the second with one object."""
    return batch(len(CLASSES), (2, 1), SIZE)


def defined(name: str, student: Detector, expert: Detector) -> bool:
    """The rules: scores are compared between detectors of a kind, towers that can be crossed exist in some dense
    heads only.
    """
    towers = all(any(tap.stage == "head" for tap in detector.taps) for detector in (student, expert))
    return not (name in ON_SCORES and student.two_stage != expert.two_stage) and (name != "crosskd" or towers)


def distillers(student: Detector, expert: Detector) -> dict[str, DetectorDistiller]:
    """A ready distiller of every method that is defined; the others must refuse."""
    from medkd.distillation import build_method

    ready = {}
    for name in NAMES:
        settings = {f"{name}.iterations": 1} if name in ("maskd", "freekd") else {}
        try:
            method = build_method(name, context(student, expert), settings, DETECTION_METHODS)
            ready[name] = DetectorDistiller(expert, method)
        except MethodError as error:
            assert not defined(name, student, expert), error
        ready[name].prepare([data_of()]) if name in ready else None
    assert set(ready) == {name for name in NAMES if defined(name, student, expert)}
    return ready


def pull(terms: dict[str, Tensor], outputs: DetectorOutputs) -> float:
    """How hard terms pull at the student's scores and maps."""
    places = [outputs.logits, *outputs.features.values()]
    grads = torch.autograd.grad(torch.stack(list(terms.values())).sum(), places, retain_graph=True, allow_unused=True)
    return sum(float(g.abs().sum()) for g in grads if g is not None)


def two_steps(student: Detector, expert: Detector) -> None:
    """Train with the terms of all methods at once; every method must have finite terms that pull."""
    ready = distillers(student, expert)
    helpers = [p for distiller in ready.values() for p in distiller.parameters()]
    before = [p.detach().clone() for p in helpers]
    optimizer = torch.optim.SGD([*student.parameters(), *helpers], 1e-4)
    student.train()
    for step in range(2):
        images, boxes, classes = data_of()
        losses, outputs, target = student.losses(images, boxes, classes)
        target = replace(target, progress=Progress(step, 2, step))
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        for name, distiller in ready.items():
            terms = distiller.terms(images, outputs, target)
            assert terms and all(t.ndim == 0 and torch.isfinite(t) for t in terms.values()), (name, terms)
            assert pull(terms, outputs) > 0, name
            total = total + 1e-2 * torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 10.0)
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in student.parameters())
    assert all(p.grad is None for p in expert.parameters())
    assert all(p.grad is not None for p in helpers) and any(
        not torch.equal(a, b) for a, b in zip(before, helpers, strict=True)
    )


@pytest.mark.parametrize("name", FAST)
def test_two_steps_with_every_method(name: str) -> None:
    two_steps(copy.deepcopy(built(name)), teacher(FAST[name]))


@pytest.mark.parametrize(("student", "expert"), MIXED)
def test_detectors_of_other_kinds_teach_by_their_features(student: str, expert: str) -> None:
    learner, source, data = copy.deepcopy(built(student)), teacher(expert), data_of()
    if DETECTORS[student].family == DETECTORS[expert].family:  # other anchors per cell: only the first step can tell
        from medkd.distillation import build_method

        distiller = DetectorDistiller(source, build_method("kd", context(learner, source), None, DETECTION_METHODS))
        _, outputs, target = learner.losses(*data)
        with pytest.raises(MethodError, match="must score the same places"):
            distiller.terms(data[0], outputs, target)
        return
    two_steps(learner, source)


@pytest.mark.slow
@pytest.mark.parametrize("name", of_today([name for name in DETECTORS if name not in FAST], 8))
def test_two_steps_of_every_other_detector_with_every_method(name: str) -> None:
    student = built.__wrapped__(name)  # these many are not kept
    kinds = ("faster_rcnn", "retinanet", "fcos", "gfl", "atss", "reppoints", "yolo")
    kind = next(k for k in kinds if name.removeprefix("mmdet_").startswith(k))
    two_steps(student, teacher("yolov8n" if kind == "yolo" else f"{kind}_r18"))
