"""Images at 1333 × 800 and at several scales: the ratio is kept and boxes follow, told apart by slow loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.cli.plan_tables import detection_plan
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import PlanError, RunError
from medkd.core.labels import LabelSpec
from medkd.core.protocol_files import find_detection_protocol
from medkd.core.speed import Speed
from medkd.detection.base import DETECTORS, DetectorSpec
from medkd.detection.detecting import detect_pixels
from medkd.detection.images import size_text
from medkd.detection.letterbox import PADDING, letterbox, scaled
from medkd.detection.planner import Wishes, apply_wishes, follow_training
from medkd.detection.published import check_ultralytics, followed
from medkd.detection.store import DetectionStore
from medkd.detection.tv.data import TrainingBatches, load_sample
from medkd.runtime.detection import check_sides
from tests.detection.tv.builders import job, make, small_store

COCO = (1333, 800)


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (427, 640), (300, 900), (1200, 100), (800, 1333)])
def test_the_longest_scale_within_both_sides_is_taken(shape: tuple[int, int]) -> None:
    rows, columns = scaled(shape, COCO)
    assert max(rows, columns) <= 1333 and min(rows, columns) <= 800
    assert max(rows, columns) == 1333 or min(rows, columns) == 800
    assert abs(rows * shape[1] - columns * shape[0]) <= max(shape)  # within a pixel of the ratio


def place_of(shape: tuple[int, int], size: int, sides: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, columns and rows of an image on the square, by trying scales one after the other."""
    long, short = max(shape), min(shape)
    scale = 0.0
    for candidate in (sides[0] / long, sides[1] / short):
        if candidate * long <= sides[0] + 1e-9 and candidate * short <= sides[1] + 1e-9:
            scale = max(scale, candidate)
    rows, columns = round(shape[0] * scale), round(shape[1] * scale)
    return (size - columns) // 2, (size - rows) // 2, columns, rows


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (30, 120), (50, 50), (200, 150)])
@pytest.mark.parametrize("sides", [(133, 80), (96, 40), (160, 160)])
def test_boxes_follow_the_scale_corner_by_corner(shape: tuple[int, int], sides: tuple[int, int]) -> None:
    size = 160
    pixels = np.zeros((*shape, 3), np.uint8)
    boxes = np.array([[3.0, 5.0, 20.0, 25.0], [0.0, 0.0, shape[1], shape[0]], [10.5, 7.25, 11.5, 19.0]])
    square, place = letterbox(pixels, size, sides=sides)
    moved = place.forth(boxes)
    left, top, columns, rows = place_of(shape, size, sides)
    for old, new in zip(boxes, moved, strict=True):
        for corner in range(4):
            begin, share = (left, columns / shape[1]) if corner % 2 == 0 else (top, rows / shape[0])
            assert new[corner] == pytest.approx(begin + old[corner] * share, abs=1e-9)
    np.testing.assert_allclose(place.back(moved), boxes, atol=1e-9)
    inside = square[:, top : top + rows, left : left + columns]
    assert float(inside.abs().max()) == 0.0
    assert float(square.sum()) == pytest.approx(3 * PADDING * (size * size - rows * columns), rel=1e-5)


def test_every_training_image_draws_its_short_side_and_validation_has_the_plans(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    made = job(tmp_path, store, make("fcos_r18"))
    plan = replace(made.plan, long_side=64, short_side=48, short_sides=(24, 40))
    detector = made.detector
    detector.spec = replace(detector.spec, sides=plan.sides)
    batches = TrainingBatches(replace(made, plan=plan, detector=detector), 8)
    drawn = {batches._sides(np.random.default_rng([plan.batch_size, step])) for step in range(40)}
    assert drawn == {(64, 24), (64, 40)}
    batches._plan = replace(plan, short_sides=(), short_range=(24, 26))
    assert {batches._sides(np.random.default_rng(step)) for step in range(60)} == {(64, 24), (64, 25), (64, 26)}
    batches._plan = replace(plan, short_sides=())
    assert batches._sides(np.random.default_rng(0)) == (64, 48)
    again = TrainingBatches(replace(made, plan=plan, detector=detector), 8)
    first, second = again[3], TrainingBatches(replace(made, plan=plan, detector=detector), 8)[3]
    assert (first[0] == second[0]).all()
    reader = DetectionStore(made.store)
    case = reader.cases()[0]
    image, boxes, _ = load_sample(reader, case, 64, plan.sides)
    square, place = letterbox(reader.image(case), 64, sides=(64, 48))
    assert (image == square).all()
    np.testing.assert_allclose(boxes.numpy(), place.forth(reader.boxes(case)[0]), atol=1e-4)


def test_boxes_come_back_in_the_pixels_of_the_image() -> None:
    detector = make("fcos_r18")
    detector.spec = replace(detector.spec, sides=(64, 32))
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    found = detect_pixels([detector.eval()], pixels, torch.device("cpu"))
    assert len(found.boxes) and found.boxes.min() >= 0
    assert (found.boxes <= [90, 60, 90, 60]).all()


def test_protocols_say_the_published_sizes() -> None:
    for name in ("crosskd:coco_1x", "crosskd:coco_2x", "crosskd:coco_2x_ms", "fourier_kd:coco_2x"):
        found = find_detection_protocol(name, {})[1]
        assert (found.long_side, found.short_side) == COCO and "coco_detection.py:16" in found.source
    assert find_detection_protocol("crosskd:coco_2x_ms", {})[1].short_sides == (640, 800)
    rows = find_detection_protocol("crosskd:coco_1x", {})[1].rows
    (teachers,) = [row for row in rows if "short_range" in row.training]
    assert teachers.networks == ("gfl_r101", "mmdet_gfl_r101") and teachers.training["short_range"] == [480, 800]


def test_a_plan_keeps_or_drops_the_sizes_with_its_images(tmp_path: Path) -> None:
    own = job(tmp_path, small_store(tmp_path), make("fcos_r18")).plan
    name, protocol = find_detection_protocol("crosskd:coco_2x_ms", {})
    trained = follow_training(own, name, protocol)  # the images stay as they are stored
    assert (trained.image_size, trained.sides, trained.short_sides) == (own.image_size, None, ())
    assert not {"short_sides", "short_range"} & set(trained.reasons)
    trained.check()
    why = dict.fromkeys(("epochs", "long_side", "short_side", "short_sides"), "protocol")
    plan = replace(own, image_size=1344, long_side=1333, short_side=800, short_sides=(640, 800), reasons=why)
    plan.check()
    assert apply_wishes(plan, Wishes(batch_size=2)).sides == COCO
    filled = apply_wishes(plan, Wishes(image_size=640))
    assert (filled.sides, filled.short_sides, set(filled.reasons)) == (None, (), {"epochs", "image_size"})
    for wrong in (
        {"long_side": 1345},
        {"short_side": None},
        {"short_side": 1334},
        {"short_sides": (0,)},
        {"short_sides": (), "short_range": (800, 640)},
        {"short_range": (640, 800)},
    ):
        with pytest.raises(PlanError):
            replace(plan, **wrong).check()  # type: ignore[arg-type]


def description() -> DatasetDescription:
    return DatasetDescription(channel_names=("X",), labels=LabelSpec.from_names(["a"]), num_training=4)


@pytest.mark.parametrize(
    ("protocol", "network", "key"), [("coco_1x", "gfl_r101", "24"), ("coco_2x_ms", "fcos_r50", "640 or 800")]
)
def test_images_that_fill_the_square_have_one_scale_under_every_protocol(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol: str, network: str, key: str
) -> None:
    own = job(tmp_path, small_store(tmp_path), make("fcos_r18")).plan
    planned = replace(own, image_size=1344, long_side=1333, short_side=800)
    for plan in (own, planned.filling(640)):
        caplog.clear()
        trained, taken = followed(plan, f"crosskd:{protocol}", description(), (None, network, None))
        again, _ = followed(trained, None, description(), (None, network, None))  # the plan's own rows
        assert (trained.sides, trained.short_sides, trained.short_range) == (None, (), ())
        assert (again.short_sides, again.short_range) == ((), ())
        assert not {"short_sides", "short_range"} & set(taken.training)  # nor does run.json say so
        assert key in caplog.text + str(trained.epochs) and "fill the square" in caplog.text


def test_a_detector_of_ultralytics_is_told_a_way_that_leads_there(tmp_path: Path) -> None:
    own = job(tmp_path, small_store(tmp_path), make("fcos_r18")).plan
    plan = replace(own, image_size=1344, long_side=1333, short_side=800, short_sides=(640, 800))
    with pytest.raises(PlanError, match=r"has long_side, short_side, short_sides; give --image-size .* than 1344"):
        check_ultralytics("yolov8n", plan)
    check_ultralytics("yolov8n", plan.filling(640))
    with pytest.raises(PlanError, match=r"has short_range; give --protocol none, take it out of plans\.json"):
        check_ultralytics("yolov8n", replace(own, short_range=(480, 800)))
    for drawn in ({"short_sides": (640, 800)}, {"short_range": (480, 800)}):
        plain, _ = followed(replace(own, **drawn), "none", description(), (None, "yolov8n", None))  # type: ignore[arg-type]
        check_ultralytics("yolov8n", plain)
    with pytest.raises(PlanError, match=r"milestones \(8,\); take them out of plans.json"):
        check_ultralytics("yolov8n", replace(own, milestones=(8,)))
    for speed, option in ((Speed(channels_last=True), "--channels-last"), (Speed(compile=True), "--compile")):
        with pytest.raises(RunError, match=rf"^yolov8n is trained by ultralytics, which has no {option}; leave it out"):
            check_ultralytics("yolov8n", plan.filling(640), speed)


def test_a_protocol_and_its_rows_replace_the_sizes_of_another(tmp_path: Path) -> None:
    plan = replace(job(tmp_path, small_store(tmp_path), make("fcos_r18")).plan, short_sides=(24, 40))
    plan = replace(plan, long_side=64, short_side=48)
    once, _ = followed(plan, "crosskd:coco_1x", description(), (None, "gfl_r50", None))
    assert (once.short_sides, once.short_range) == ((), ())
    teacher, taken = followed(plan, "crosskd:coco_1x", description(), (None, "gfl_r101", None))
    assert (teacher.short_sides, teacher.short_range, teacher.epochs) == ((), (480, 800), 24)
    assert {"short_range", "epochs"} <= set(taken.training)
    several, _ = followed(teacher, "crosskd:coco_2x_ms", description(), (None, "fcos_r50", None))
    assert (several.short_sides, several.short_range) == ((640, 800), ())
    for made in (once, teacher, several):
        made.check()


def test_a_detector_of_a_plan_without_sizes_sees_what_it_saw_before() -> None:
    spec = DetectorSpec("fcos_r18", ("a",), 64)
    assert spec.sides is None and "fcos_r18" in DETECTORS
    pixels = np.random.default_rng(0).integers(0, 255, (37, 90, 3), dtype=np.uint8)
    assert (letterbox(pixels, 64)[0] == letterbox(pixels, 64, sides=(64, 64))[0]).all()


def test_sides_beyond_the_square_are_refused_where_they_are_read_and_bounded_where_they_are_used() -> None:
    for wrong in ((70, 40), (40, 50), (40, 0), (-1, -2)):
        with pytest.raises(RunError, match="within the image_size of 64"):
            check_sides(wrong, 64, "teacher.json")
        square, place = letterbox(np.zeros((30, 20, 3), np.uint8), 64, sides=wrong)
        assert square.shape == (3, 64, 64) and min(place.left, place.top) >= 0


def test_people_are_told_how_large_images_are(tmp_path: Path) -> None:
    plan = replace(job(tmp_path, small_store(tmp_path), make("fcos_r18")).plan, long_side=60, short_side=40)
    assert "60 px, short side 40" in detection_plan(plan)
    assert "640 or 800" in detection_plan(replace(plan, short_sides=(640, 800)))
    assert size_text(replace(plan, short_range=(480, 800)), 64).endswith("short sides of 480 to 800 in training")
    assert size_text(plan.filling(96), 96) == "images of 96 × 96"
