"""YOLO detectors against ultralytics' own forward pass, loss and suppression."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from medkd.core.errors import RunError
from medkd.detection.base import DETECTORS, DetectorOutputs, DetectorSpec
from medkd.detection.yolo import offline
from medkd.detection.yolo.assignment import from_batch, to_batch
from tests.detection.yolo.builders import SIZE, batch, calibrated, make

NAMES = ("yolov8n", "yolo11n", "yolo26n", "yolov8_r18", "yolov8_efficientnet_es")
NOTHING = DetectorOutputs(logits=torch.zeros(1))


def test_all_are_registered() -> None:
    names = {f"{family}{size}" for family in ("yolov8", "yolo11", "yolo26") for size in "nsmlx"}
    assert names | {"yolov8_r18", "yolov8_efficientnet_es"} <= set(DETECTORS)
    assert all(DETECTORS[name].family == "yolo" for name in names)


@pytest.mark.parametrize("name", NAMES)
def test_taps_outputs_and_state_fit_the_network(name: str) -> None:
    detector = make(name, categories=("fracture", "metal"))
    images, _, _ = batch()
    seen: dict[str, Tensor] = {}
    hooks = [
        detector.get_submodule(tap.module).register_forward_hook(
            lambda m, i, o, n=tap.name: seen.update({n: o.detach().clone()})
        )
        for tap in detector.taps
    ]
    detector.eval()
    outputs = detector.observe(images, NOTHING)
    assert [hook.remove() for hook in hooks]
    assert [tap.name for tap in detector.taps if tap.stage == "neck"] == ["p3", "p4", "p5"]
    for tap in detector.taps:
        feature = outputs.features[tap.name]
        assert feature.shape == (2, tap.channels, SIZE // tap.stride[0], SIZE // tap.stride[0])
        torch.testing.assert_close(seen[tap.name], feature)
    assert outputs.logits.shape == (2, 2, 84) and outputs.boxes is not None and outputs.boxes.shape == (2, 84, 4)
    assert [(v.tap, v.stride, v.start, v.stop) for v in outputs.levels] == [
        ("p3", 8, 0, 64),
        ("p4", 16, 64, 80),
        ("p5", 32, 80, 84),
    ]
    assert (outputs.distribution is None) == name.startswith("yolo26")
    assert detector.state_dict().keys() == detector.network.state_dict().keys()


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n"])
def test_logits_and_boxes_are_those_of_the_network(name: str) -> None:
    detector = calibrated(name)
    images, _, _ = batch()
    with torch.no_grad():
        _, raw = detector.network(images)
        outputs = detector.observe(images, NOTHING)
        raw = raw.get("one2many", raw)
        detector.head.xyxy, detector.head.shape = True, None
        boxes = detector.head._get_decode_boxes(raw).transpose(1, 2)
    torch.testing.assert_close(outputs.logits, raw["scores"])
    torch.testing.assert_close(outputs.boxes, boxes, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n"])
def test_losses_are_ultralytics_own(name: str) -> None:
    detector = make(name, categories=("fracture", "metal"))
    images, boxes, classes = batch(2)
    terms, outputs, target = detector.losses(images, boxes, classes)
    theirs, items = copy.deepcopy(detector.network).loss(to_batch(images, boxes, classes))
    torch.testing.assert_close(torch.stack(list(terms.values())), theirs / 2)
    assert list(terms) == list(items)
    labels = target.labels
    assert labels.shape == (2, 1, 84) and (labels[1] == -1).all()
    assert set(labels[0].unique().tolist()) == {-1, 0, 1}
    for level in outputs.levels:  # a positive's centre lies in a box of its class
        for place in (labels[0, 0, level.start : level.stop] >= 0).nonzero().flatten().tolist():
            row, column = divmod(place, level.shape[1])
            x, y = (column + 0.5) * level.stride, (row + 0.5) * level.stride
            left, top, right, bottom = boxes[0][int(labels[0, 0, level.start + place])].tolist()
            assert left <= x <= right and top <= y <= bottom
    sum(terms.values()).backward()
    assert detector.model[0].conv.weight.grad.abs().sum() > 0  # type: ignore[index,union-attr]


def test_a_batch_without_boxes_has_a_loss_and_no_labels() -> None:
    detector = make()
    images, boxes, classes = batch()
    terms, _, target = detector.losses(images, [boxes[1]] * 2, [classes[1]] * 2)
    assert (target.labels == -1).all() and terms["box_loss"] == 0
    assert torch.isfinite(terms["cls_loss"]) and terms["cls_loss"] > 0
    sum(terms.values()).backward()


def test_batches_go_there_and_back() -> None:
    images, boxes, classes = batch(3)
    back = from_batch(to_batch(images, boxes, classes))
    for ours, theirs in zip((*boxes, *classes), (*back[0], *back[1]), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n"])
def test_a_tower_is_continued_as_the_network_does(name: str) -> None:
    detector = calibrated(name)
    outputs = detector.observe(batch()[0], NOTHING)
    for level in outputs.levels:
        logits = outputs.logits[:, :, level.start : level.stop]
        for tap in (f"{level.tap}.class", level.tap):
            torch.testing.assert_close(detector.forward_from(tap, outputs.features[tap]), logits)
        boxes = detector.forward_from(f"{level.tap}.box", outputs.features[f"{level.tap}.box"])
        whole = outputs.boxes if outputs.distribution is None else outputs.distribution
        assert whole is not None
        torch.testing.assert_close(boxes, whole[:, level.start : level.stop])
    with pytest.raises(RunError, match="p3"):
        detector.forward_from("p9", outputs.features["p3"])


def test_a_crossed_gradient_reaches_the_students_first_block_only() -> None:
    student, teacher = make(seed=1), calibrated(seed=2).requires_grad_(False)
    outputs = student.observe(batch()[0], NOTHING)
    held = outputs.features["p3.class"].clone()
    crossed = teacher.forward_from("p3.class", outputs.features["p3.class"])
    crossed.square().sum().backward()
    assert torch.equal(held, outputs.features["p3.class"])  # nothing worked in place on it
    branch = student.head.cv3[0]
    assert branch[0].conv.weight.grad.abs().sum() > 0
    assert branch[1].conv.weight.grad is None and branch[2].weight.grad is None
    assert all(p.grad is None for p in teacher.parameters())


def test_losses_with_other_neck_maps() -> None:
    detector = calibrated().requires_grad_(False)
    images, boxes, classes = batch()
    neck = {name: feature for name, feature in detector.observe(images, NOTHING).features.items() if "." not in name}
    plain = detector.losses(images, boxes, classes)[0]
    same = detector.losses_from_neck(images, dict(neck), boxes, classes)
    torch.testing.assert_close(same, plain)
    mask = torch.ones(1, requires_grad=True)
    masked = detector.losses_from_neck(images, {"p3": neck["p3"] * mask}, boxes, classes)
    sum(masked.values()).backward()
    assert mask.grad is not None and mask.grad.abs() > 0


@pytest.mark.parametrize("classes", [1, 3])
def test_detections_are_those_of_ultralytics_suppression(classes: int) -> None:
    from ultralytics.utils.nms import non_max_suppression

    detector = calibrated(categories=("a", "b", "c")[:classes])
    images, _, _ = batch()
    found = detector.detect(images, score=0.05, overlap=0.5, most=20)
    with torch.no_grad():
        expected = non_max_suppression(detector.network(images)[0], 0.05, 0.5, multi_label=True, max_det=20)
    assert sum(len(e) for e in expected) > 5
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.scores, theirs[:, 4])
        torch.testing.assert_close(ours.boxes, theirs[:, :4].clamp(0, SIZE), atol=1e-4, rtol=1e-4)
        assert torch.equal(ours.classes, theirs[:, 5].long())


def test_without_a_word_suppression_is_ultralytics_own() -> None:
    detector = calibrated()
    images, _, _ = batch()
    own, same, stricter = (detector.detect(images, score=0.001, overlap=overlap) for overlap in (None, 0.7, 0.5))
    assert [len(f.boxes) for f in own] == [len(f.boxes) for f in same] != [len(f.boxes) for f in stricter]


def test_an_end_to_end_head_is_not_suppressed() -> None:
    detector = calibrated("yolo26n")
    images, _, _ = batch()
    found = detector.detect(images, score=0.001, overlap=0.0, most=300)
    with torch.no_grad():
        detector.network.end2end = True
        expected = detector.network(images)[0]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.scores, theirs[:, 4])
        torch.testing.assert_close(ours.boxes, theirs[:, :4].clamp(0, SIZE), atol=1e-4, rtol=1e-4)


def test_detecting_leaves_the_mode_and_the_statistics() -> None:
    detector = make().train()
    before = copy.deepcopy(detector.state_dict())
    assert all(len(d.boxes) <= 4 for d in detector.detect(batch()[0], score=0.0, most=4))
    assert detector.training and detector.head.training
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_building_is_determined_by_the_seed_and_names_are_kept() -> None:
    first, second, other = make(seed=1), make(seed=1), make(seed=2)
    states = [d.state_dict()["model.0.conv.weight"] for d in (first, second, other)]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    assert first.network.names == {0: "fracture"}
    half = copy.deepcopy(first).double()
    assert half.head.stride.dtype == torch.float64 and first.head.stride.dtype == torch.float32


def test_an_unknown_detector_is_refused() -> None:
    with pytest.raises(RunError, match="yolov8n"):
        DETECTORS["yolov8nn"].build(DetectorSpec("yolov8nn", ("a",), SIZE))


def test_pillow_stays_pillow(tmp_path: Path) -> None:
    offline.require()
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(UnidentifiedImageError):
        Image.open(tmp_path / "no.png")
