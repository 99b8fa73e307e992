"""From boxes to fingerprint and plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from medkd.core.boxes import BoxAnnotation
from medkd.core.errors import DataError, PlanError
from medkd.core.files import read_json, write_json
from medkd.core.protocol import DetectionProtocol
from medkd.core.protocol_files import find_detection_protocol, read_protocols
from medkd.detection.fingerprint import DetectionFingerprint, make_fingerprint
from medkd.detection.plan import DetectionPlan
from medkd.detection.planner import Wishes, make_plan
from medkd.detection.sampling import sampling_groups

CATEGORIES = ("fracture", "metal", "text")


def annotation(side: float, names: Sequence[str], width: int = 800, height: int = 1000) -> BoxAnnotation:
    boxes = tuple((10.0 * i, 5.0, 10.0 * i + 2 * side, 5.0 + side) for i in range(len(names)))
    return BoxAnnotation(width=width, height=height, boxes=boxes, names=tuple(names))


def fingerprint(annotations: Sequence[BoxAnnotation], categories: Sequence[str] = CATEGORIES) -> DetectionFingerprint:
    return make_fingerprint({f"c{i:04d}": a for i, a in enumerate(annotations)}, categories, "source")


def plan_of(annotations: Sequence[BoxAnnotation], wishes: Wishes | None = None, **more: object) -> DetectionPlan:
    return make_plan("Dataset001_X", CATEGORIES, fingerprint(annotations), wishes, **more)  # type: ignore[arg-type]


def test_the_fingerprint_counts_and_measures() -> None:
    found = fingerprint(
        [annotation(20, ["text", "fracture", "text"]), annotation(40, ["metal"]), annotation(1, [], 400, 300)]
    )
    assert (found.positives, found.negatives) == (2, 1)
    assert found.boxes == {"fracture": 1, "metal": 1, "text": 2} and found.images == {
        "fracture": 1,
        "metal": 1,
        "text": 1,
    }
    assert found.category_sets == {"fracture+text": 1, "metal": 1} and found.boxes_per_image == {"0": 1, "1": 1, "3": 1}
    assert (found.long_side.lowest, found.long_side.highest) == (400, 1000)
    assert found.box_short_share.highest == pytest.approx(0.04) and found.box_shape.median == pytest.approx(2)
    sides = [np.sqrt(2) * s for s in (20, 20, 20, 40)]
    assert found.box_side.median == pytest.approx(np.median(sides), abs=1e-5)
    assert found.box_side.p95 == pytest.approx(np.percentile(sides, 95), abs=1e-5)
    assert fingerprint([annotation(1, [])]).box_side.highest == 0


@pytest.mark.parametrize(
    ("side", "long_side", "size", "reason"),
    [
        (30, 1000, 416, "12.5 px"),  # 12 px / 0.03 = 400
        (5, 1000, 640, "640 is the largest"),
        (200, 1000, 320, "320 is the smallest"),
        (30, 250, 256, "has 30.7 px"),
        (8, 454, 480, "the images are not larger"),
    ],
)
def test_the_image_size_follows_the_small_boxes(side: int, long_side: int, size: int, reason: str) -> None:
    plan = plan_of([annotation(side, ["fracture"], long_side // 2, long_side)] * 200)
    assert plan.image_size == size and size % 32 == 0
    assert reason in plan.reasons["image_size"]


def test_large_boxes_get_large_anchors_and_small_data_sets_small_batches() -> None:
    small, large = (plan_of([annotation(side, ["fracture"])] * 40) for side in (20, 150))
    assert small.anchor_scale < large.anchor_scale <= 8
    assert small.batch_size == 4 and plan_of([annotation(20, ["fracture"])] * 400).batch_size == 16
    assert small.epochs == 300 and plan_of([annotation(20, ["fracture"])] * 400).epochs == 150


def test_dominating_sets_of_categories_and_negatives_are_drawn_less_often() -> None:
    common, rare = annotation(30, ["fracture", "text"]), [annotation(30, ["metal"]), annotation(30, ["text"])]
    plan = plan_of([common] * 80 + rare * 10 + [annotation(1, [])] * 150)
    assert plan.sampling == {"fracture+text": 0.31} and "80%" in plan.reasons["sampling"]
    assert plan.negatives == 1.0 and "150 images without" in plan.reasons["negatives"]
    assert set(sampling_groups(plan)) == {frozenset(("fracture", "text"))}
    alike = plan_of([common] * 80 + [annotation(1, [])] * 20)
    assert alike.sampling == {} and alike.negatives is None


def test_without_boxes_there_is_no_plan() -> None:
    with pytest.raises(PlanError, match="no box in any of its 3 training images"):
        plan_of([annotation(1, [])] * 3)


def test_the_user_wins_and_is_checked() -> None:
    plan = plan_of([annotation(30, ["fracture"])] * 200, Wishes(256, 3))
    assert (plan.image_size, plan.batch_size) == (256, 3) and plan.reasons["image_size"] == "given by the user"
    with pytest.raises(PlanError, match="multiple of 32"):
        plan_of([annotation(30, ["fracture"])] * 200, Wishes(250))


def test_a_protocol_sets_what_it_says() -> None:
    name, protocol = find_detection_protocol("sfd_kd:grazpedwri_yolo", {})
    plan = plan_of([annotation(30, ["fracture", "text"])] * 200, protocol=(name, protocol))
    assert name == plan.protocol == "sfd_kd:grazpedwri_yolo"
    assert (plan.image_size, plan.batch_size, plan.epochs, plan.learning_rate) == (640, 4, 100, 0.002)
    assert (plan.final_learning_rate, plan.momentum, plan.weight_decay) == (2e-6, 0.9, 1e-4)
    assert plan.sampling == {"fracture+text": 0.1} and plan.augmentation.brightness == 0
    without_text = make_plan(
        "D", ("fracture",), fingerprint([annotation(30, ["fracture"])] * 9, ("fracture",)), protocol=(name, protocol)
    )
    assert without_text.sampling == {}
    silent = plan_of(
        [annotation(30, ["fracture"])] * 200, protocol=find_detection_protocol("sfd_kd:fracatlas_yolo", {})
    )
    assert (silent.image_size, silent.batch_size, silent.epochs) == (480, 2, 300) and silent.final_learning_rate is None
    unknown = DetectionProtocol(image_size=64, batch_size=2, augmentation={"mosiac": 1.0})
    with pytest.raises(PlanError, match="Did you mean 'mosaic'"):
        plan_of([annotation(30, ["fracture"])] * 9, protocol=("own", unknown))


def test_every_shipped_detection_protocol_makes_a_plan() -> None:
    for variant in read_protocols("sfd_kd").detection:
        plan_of(
            [annotation(30, ["fracture", "text"])] * 50, protocol=find_detection_protocol(f"sfd_kd:{variant}", {})
        ).check()


@pytest.mark.parametrize(
    ("text", "format", "message"),
    [
        ("sfd_kd", "fracatlas", "with one of fracatlas_faster_rcnn, fracatlas_yolo"),
        ("sfd_kd", "", "several variants"),
        ("sfd_kd:yolo", "", "no variant 'yolo'"),
        ("acf_bckd", "btcv", "is for segmentation"),
    ],
)
def test_an_unclear_protocol_is_refused(text: str, format: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        find_detection_protocol(text, {"medkd": {"format": format}})


def test_an_edited_plan_is_checked(tmp_path: Path) -> None:
    plan_of([annotation(30, ["fracture"])] * 20).save(tmp_path / "plans.json")
    good = read_json(tmp_path / "plans.json")
    assert DetectionPlan.load(tmp_path / "plans.json").sampling == {}
    for change, text in (
        ({"image_size": 100}, "multiple of 32"),
        ({"batch_size": 0}, "batch_size"),
        ({"augmentation": {"scale": 2.0}}, "from 0 to 1"),
    ):
        write_json(tmp_path / "plans.json", {**good, **change})
        with pytest.raises(PlanError, match=text):
            DetectionPlan.load(tmp_path / "plans.json")
    for change, text in (
        ({"imagesize": 1}, "Did you mean 'image_size'"),
        ({"task": "segmentation"}, "no plan for detection"),
    ):
        write_json(tmp_path / "plans.json", {**good, **change})
        with pytest.raises(DataError, match=text):
            DetectionPlan.load(tmp_path / "plans.json")
