from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from medkd.core.errors import RunError
from medkd.detection.base import DETECTORS, Detector, DetectorOutputs
from tests.detection.tv.builders import SIZE, SMALL, TOWERS, batch, make

LARGE = [
    "faster_rcnn_r50",
    "faster_rcnn_efficientnet_es",
    "faster_rcnn_resnest50",
    "faster_rcnn_swin_t",
    "faster_rcnn_pvt_v2_b5",
    "retinanet_swin_t",
    "gfl_r101",
    "reppoints_r50",
    "reppoints_x101_32x4d_dcn",
    "mmdet_retinanet_r18",
    "mmdet_fcos_r50_caffe",
]


def values(terms: dict[str, torch.Tensor]) -> dict[str, float]:
    """The terms as numbers."""
    return {name: term.item() for name, term in terms.items()}


def test_all_detectors_are_registered_without_importing_torchvision() -> None:
    code = (
        "import sys, medkd.detection.tv\nfrom medkd.detection.base import DETECTORS\n"
        "print(len([n for n in DETECTORS if DETECTORS[n].family == 'torchvision']), 'torchvision' in sys.modules, "
        "'timm' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["41", "False", "False"]


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)])
def test_a_step_reaches_every_weight_and_the_published_shapes_are_true(name: str) -> None:
    detector = make(name).train()
    images, boxes, classes = batch()
    terms, outputs, target = detector.losses(images, boxes, classes)
    assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    assert [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert set(outputs.features) == {tap.name for tap in detector.taps}
    modules = dict(detector.named_modules())
    for tap in detector.taps:
        side = -(-SIZE // tap.stride[0])
        assert outputs.features[tap.name].shape == (2, tap.channels, side, side), tap
        assert tap.module in modules
    if detector.two_stage:
        count = sum(len(p) for p in outputs.proposals)
        assert (
            outputs.logits.shape == (count, 3) and outputs.deltas is not None and outputs.deltas.shape == (count, 3, 4)
        )
        assert target.labels.shape == (count, 1) and set(target.labels.unique().tolist()) == {0, 1, 2}
    else:
        anchors = outputs.levels[-1].stop
        assert (
            outputs.logits.shape == (2, 2, anchors)
            and outputs.boxes is not None
            and outputs.boxes.shape == (2, anchors, 4)
        )
        # the untrained points of one cell may be the best for both boxes, and the last box gets them
        least = {-1, 1} if outputs.first_boxes is not None else {-1, 0, 1}
        assert target.labels.shape == (2, 1, anchors) and least <= set(target.labels.unique().tolist()) <= {
            -2,
            -1,
            0,
            1,
        }
        assert (target.labels[1] == -1).all()


@pytest.mark.parametrize("name", SMALL)
def test_batches_without_boxes_and_one_class_are_no_special_case(name: str) -> None:
    detector = make(name, classes=1).train()
    for empty in (True, False):
        terms, outputs, target = detector.losses(*batch(classes=1, empty=empty))
        torch.stack(list(terms.values())).sum().backward()
        assert all(term.isfinite() for term in terms.values())
        assert outputs.logits.shape[1] == (2 if detector.two_stage else 1)
        if empty:
            assert terms["box"] == 0 and (target.labels <= (0 if detector.two_stage else -1)).all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_detections_lie_in_the_image_sorted_and_apart(name: str) -> None:
    from torchvision.ops import box_iou

    detector = make(name).eval()
    found = detector.detect(batch()[0], score=1e-4, overlap=0.3, most=15)
    assert len(found) == 2 and all(0 < len(f.boxes) <= 15 for f in found)
    for f in found:
        assert f.boxes.min() >= 0 and f.boxes.max() <= SIZE and (f.boxes[:, 2:] > f.boxes[:, :2]).all()
        assert (f.scores.diff() <= 0).all() and f.scores.min() > 1e-4 and set(f.classes.tolist()) <= {0, 1}
        for k in (0, 1):
            own = f.boxes[f.classes == k]
            assert (box_iou(own, own).fill_diagonal_(0) <= 0.3 + 1e-6).all()
    assert all(len(f.boxes) == 0 for f in detector.detect(batch()[0], score=1.0))


@pytest.mark.parametrize(
    ("name", "overlap"),
    [("retinanet_r18", 0.5), ("fcos_r18", 0.6), ("gfl_r18", 0.6), ("atss_r18", 0.6), ("faster_rcnn_r18", 0.5)],
)
def test_without_a_word_overlapping_boxes_are_dropped_as_published(
    name: str, overlap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medkd.detection.tv import dense, faster_rcnn

    used: list[float] = []

    def suppress(boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, threshold: float) -> torch.Tensor:
        used.append(threshold)
        return torch.arange(len(boxes))

    for module in (dense, faster_rcnn):
        monkeypatch.setattr(module, "batched_nms", suppress)
    detector = make(name).eval()
    detector.detect(batch()[0])
    detector.detect(batch()[0], overlap=0.3)
    assert used == [overlap, overlap, 0.3, 0.3]  # of both images


def test_anchors_are_told_where_there_are_any() -> None:
    told = {name: make(name).anchors for name in SMALL}  # with an anchor scale of 2
    assert told["fcos_r18"] == () and told["gfl_r18"] == told["atss_r18"] == ((4.0, 1.0),)
    assert [ratio for side, ratio in told["retinanet_r18"] if side == 2.0] == [0.5, 1.0, 2.0] and len(
        told["retinanet_r18"]
    ) == 9
    assert told["faster_rcnn_r18"] == ((4.0, 0.5), (4.0, 1.0), (4.0, 2.0))


@pytest.mark.parametrize("name", SMALL)
def test_the_losses_of_the_own_neck_are_the_losses_and_those_of_another_depend_on_it(name: str) -> None:
    detector = make(name).eval()
    images, boxes, classes = batch()
    terms, outputs, _ = detector.losses(images, boxes, classes)
    neck = {t.name: outputs.features[t.name] for t in detector.taps if t.stage == "neck"}
    again = detector.losses_from_neck(images, neck, boxes, classes)
    assert values(again) == pytest.approx(values(terms), rel=1e-5)
    first = next(iter(neck))
    changed = torch.randn_like(neck[first]).requires_grad_()
    other = detector.losses_from_neck(images, {first: changed}, boxes, classes)
    torch.stack(list(other.values())).sum().backward()
    assert changed.grad is not None and changed.grad.abs().sum() > 0
    assert values(other) != pytest.approx(values(terms), rel=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_the_head_continued_from_its_own_holds_gives_its_own_output(name: str) -> None:
    detector = make(name).eval()
    outputs = detector.observe(batch()[0], DetectorOutputs(logits=torch.zeros(0)))
    box = outputs.distribution if outputs.distribution is not None else outputs.boxes
    assert box is not None
    for level in outputs.levels:
        own = outputs.logits[..., level.start : level.stop]
        assert torch.allclose(
            detector.forward_from(f"{level.tap}.class", outputs.features[f"{level.tap}.class"]), own, atol=1e-6
        )
        assert torch.allclose(detector.forward_from(level.tap, outputs.features[level.tap]), own, atol=1e-6)
        continued = detector.forward_from(f"{level.tap}.box", outputs.features[f"{level.tap}.box"])
        assert torch.allclose(continued, box[:, level.start : level.stop], atol=1e-5)
    assert (outputs.features["p3.class"] < 0).any()  # not yet rectified, and not rectified in place
    with pytest.raises(RunError, match=r"has no tap 'p3\.centre'"):
        detector.forward_from("p3.centre", outputs.features["p3"])


@pytest.mark.parametrize("name", TOWERS)
def test_gradient_through_a_frozen_head_reaches_the_feature_only(name: str) -> None:
    detector = make(name).eval().requires_grad_(False)
    for tap in ("p4.class", "p4.box"):
        feature = torch.randn(2, 256, 4, 4, requires_grad=True)
        detector.forward_from(tap, feature).sin().sum().backward()
        assert feature.grad is not None and feature.grad.abs().sum() > 0
    assert all(p.grad is None for p in detector.parameters())


@pytest.mark.parametrize(("name", "hold"), [("retinanet_r18", 3), ("gfl_r18", 3), ("atss_r18", 3), ("fcos_r18", 2)])
def test_the_held_block_is_the_published_one(name: str, hold: int) -> None:
    """A gradient from a held map reaches the blocks up to it, and none after it."""
    detector = make(name)
    outputs = detector.observe(batch()[0], DetectorOutputs(logits=torch.zeros(0)))
    outputs.features["p3.class"].sum().backward()
    reached = [block[0].weight.grad is not None for block in detector.head.class_tower.blocks]
    assert reached == [i < hold for i in range(4)]


def test_a_two_stage_teacher_scores_the_students_proposals() -> None:
    student, teacher = make("faster_rcnn_r18", seed=1), make("faster_rcnn_r18", seed=2).eval()
    images, boxes, classes = batch()
    _, outputs, _ = student.train().losses(images, boxes, classes)
    seen = teacher.observe(images, outputs)
    assert seen.logits.shape == outputs.logits.shape and not torch.allclose(seen.logits, outputs.logits)
    assert all(torch.equal(a, b) for a, b in zip(seen.proposals, outputs.proposals, strict=True))
    same = student.eval().observe(images, seen)
    assert torch.equal(same.logits, student.observe(images, outputs).logits)
    alone = teacher.observe(images, DetectorOutputs(logits=torch.zeros(0)))
    assert len(alone.proposals) == 2 and len(alone.logits) == sum(len(p) for p in alone.proposals)
    assert (
        type(teacher).forward_from is Detector.forward_from
    )  # by which methods that continue a teacher know that they cannot


def test_losses_in_eval_mode_are_repeatable_and_leave_the_generator_alone() -> None:
    detector = make("faster_rcnn_r18").eval()
    state = torch.random.get_rng_state()
    first, second = (detector.losses(*batch())[0] for _ in range(2))
    assert values(first) == values(second)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", ["gfl_r18", "faster_rcnn_r18"])
def test_half_precision_gives_losses_in_single(name: str) -> None:
    detector = make(name).eval()
    exact, _, _ = detector.losses(*batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms, outputs, _ = detector.losses(*batch())
        detector.detect(batch()[0])
    assert all(term.dtype == torch.float32 for term in terms.values()) and outputs.logits.dtype == torch.float32
    assert sum(values(terms).values()) == pytest.approx(sum(values(exact).values()), rel=0.1)


def test_names_say_what_is_built() -> None:
    assert all(DETECTORS[n].about for n in DETECTORS)
    assert make("retinanet_r18").pyramid.backbone == "r18"
