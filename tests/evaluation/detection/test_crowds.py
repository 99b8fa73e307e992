"""Boxes that are to be ignored (crowds), from the files to every score that a user sees; pycocotools is the judge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medkd.cli.cross_validate import main as cross_validate_main
from medkd.cli.evaluate import main
from medkd.core.boxes import BoxAnnotation
from medkd.core.run import Budget, NetworkSpec, RunDescription
from medkd.core.serial import save
from medkd.evaluation.detection.folder import evaluate_detection_folder
from medkd.evaluation.detection.matching import FALSE, match_froc
from medkd.evaluation.detection.metrics import RATES, rate_key
from medkd.evaluation.detection.predictions import Boxes, DetectionPredictions, ImagePredictions
from medkd.evaluation.detection.results import DetectionSummary
from medkd.evaluation.report.detection_pictures import ranked_images
from medkd.evaluation.report.detection_scores import DetectionScores
from tests.evaluation.boxes import SIDE, random_boxes, random_pair, write_pair

NAMES = ("fracture", "text")
BOX, CROWD = (10.0, 10.0, 50.0, 50.0), (100.0, 100.0, 200.0, 200.0)
INSIDE = [[105.0, 105.0, 140.0, 140.0], [150.0, 150.0, 190.0, 190.0]]


def add_crowds(references: Path, seed: int = 3) -> None:
    """Give every image none to two crowds."""
    rng = np.random.default_rng(seed)
    for path in sorted(references.glob("*.json")):
        boxes = random_boxes(rng, int(rng.integers(0, 3)))
        boxes[:, 2:] += 40
        drawn = BoxAnnotation.load(path)
        names = tuple(NAMES[k] for k in rng.integers(0, 2, len(boxes)))
        BoxAnnotation(
            width=drawn.width,
            height=drawn.height,
            boxes=drawn.boxes,
            names=drawn.names,
            ignored=tuple(map(tuple, boxes.tolist())),
            ignored_names=names,
        ).save(path)


def judged_by_pycocotools(predictions: Path, references: Path) -> Mapping[str, float]:
    """AP and AP50 of the files, with nothing of medkd's between."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = json.loads((predictions / "predictions.json").read_text())["images"]
    data = {name: COCO() for name in ("found", "drawn")}
    entries: dict[str, list] = {"found": [], "drawn": []}
    images: list[dict] = []

    def add(kind: str, box: list[float], name: str, **more: float) -> None:
        left, top, right, bottom = box
        sides = [left, top, right - left, bottom - top]
        entries[kind].append(
            {
                "id": len(entries[kind]) + 1,
                "image_id": images[-1]["id"],
                "category_id": NAMES.index(name) + 1,
                "bbox": sides,
                "area": sides[2] * sides[3],
                "iscrowd": 0,
                **more,
            }
        )

    for number, path in enumerate(sorted(references.glob("*.json")), start=1):
        images.append({"id": number})
        image, drawn = found[path.stem], json.loads(path.read_text())
        for box, name, score in zip(image["boxes"], image["classes"], image["scores"], strict=True):
            add("found", box, name, score=score)
        for box, name in zip(drawn["boxes"], drawn["names"], strict=True):
            add("drawn", box, name)
        for box, name in zip(drawn["ignored"], drawn["ignored_names"], strict=True):
            add("drawn", box, name, iscrowd=1)
    for kind, table in data.items():
        categories = [{"id": place, "name": name} for place, name in enumerate(NAMES, start=1)]
        table.dataset = {"info": {}, "images": images, "categories": categories, "annotations": entries[kind]}
        table.createIndex()
    judge = COCOeval(data["drawn"], data["found"], "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return {"AP": judge.stats[0], "AP50": judge.stats[1]}


def case(folder: Path, name: str, found: Boxes, *, boxes: int = 0, crowds: int = 0) -> ImagePredictions:
    """Write the annotation of an image with so many boxes and crowds; what was found in it."""
    BoxAnnotation(
        width=SIDE,
        height=SIDE,
        boxes=(BOX,) * boxes,
        names=("fracture",) * boxes,
        ignored=(CROWD,) * crowds,
        ignored_names=("fracture",) * crowds,
    ).save(folder / f"{name}.json")
    return ImagePredictions(f"{name}.png", SIDE, SIDE, found)


def test_scores_of_a_folder_are_pycocotools_where_there_are_crowds(tmp_path: Path) -> None:
    predictions, references = write_pair(tmp_path, random_pair(0, images=12, others=12), NAMES)
    plain = evaluate_detection_folder(predictions, references)
    add_crowds(references)
    theirs = judged_by_pycocotools(predictions, references)
    for order in ((), ("--labels", ",".join(reversed(NAMES)))):  # the classes may get other numbers on the way
        assert main([str(predictions), str(references), *order]) == 0
        ours = DetectionSummary.load(predictions / "summary.json")
        for metric in ("AP", "AP50"):
            assert ours.value(metric).mean == pytest.approx(theirs[metric], abs=1e-9)
    assert theirs["AP"] > plain.value("AP").mean, "what lies in the crowds must matter"
    sums = [sum(summary.value(rate_key(rate)).mean for rate in RATES) for summary in (ours, plain)]
    assert sums[0] > sums[1]
    again = tmp_path / "again.json"
    ours.save(again)
    assert DetectionSummary.load(again).to_json() == ours.to_json()


def test_folds_put_together_and_compared_ignore_the_same_boxes(tmp_path: Path) -> None:
    run = tmp_path / "results" / "Dataset502_Test" / "yolov8n__detection"
    run.mkdir(parents=True)
    network = NetworkSpec(name="yolov8n", in_channels=3, num_outputs=2, patch_size=(64, 64))
    budget = Budget(epochs=1, iterations_per_epoch=1, batch_size=1, learning_rate=0.1, seed=0)
    described = RunDescription(
        dataset=run.parent.name, configuration="detection", network=network, budget=budget, mirror_axes=()
    )
    save(run / "run.json", described)
    predictions, references = write_pair(tmp_path, random_pair(0, images=12, others=12), NAMES)
    add_crowds(references)
    found = DetectionPredictions.load(predictions)
    cases = sorted(found.images)
    for fold, wanted in enumerate((cases[:5], cases[5:])):
        folder = run / f"fold_{fold}" / "validation"
        found.restricted(wanted).save(folder)
        own = tmp_path / f"labels_{fold}"
        for name in wanted:
            BoxAnnotation.load(references / f"{name}.json").save(own / f"{name}.json")
        evaluate_detection_folder(folder, own).save(folder / "summary.json")
        (folder.parent / "split.json").write_text(json.dumps({"train": [], "val": wanted}))
    assert cross_validate_main(["502", run.name, "--root", str(tmp_path)]) == 0
    merged = DetectionSummary.load(run / "crossval" / "summary.json")
    theirs = judged_by_pycocotools(predictions, references)
    assert merged.value("AP").mean == pytest.approx(theirs["AP"], abs=2e-3)  # boxes were rounded to 0.001 pixels
    whole = evaluate_detection_folder(predictions, references)
    assert merged.value("S@1").mean == pytest.approx(whole.value("S@1").mean)
    assert merged.value("AUC").mean == pytest.approx(whole.value("AUC").mean)
    scores = DetectionScores.read(run, [0, 1])
    same = scores.compare(scores)
    difference = same.of("AP")
    assert difference is not None and difference.mean == 0.0
    matched = scores.matches(scores.cases)
    assert matched.froc[-1].crowded.any() and (matched.coco[0].hit == -1).any()


def test_an_image_with_crowds_alone_is_neither_with_nor_without_a_box(tmp_path: Path) -> None:
    hit, inside, nothing = Boxes.of([BOX], [0], [0.5]), Boxes.of(INSIDE, [0, 0], [0.9, 0.8]), Boxes.of([], [], [])
    references = tmp_path / "ref"
    images = {
        "box": case(references, "box", hit, boxes=1),
        "crowd": case(references, "crowd", inside, crowds=1),
        "none": case(references, "none", nothing),
    }
    DetectionPredictions(NAMES[:1], images).save(tmp_path)
    summary = evaluate_detection_folder(tmp_path, references)
    for metric in ("AP", "S@0.125", "AUC"):
        assert summary.value(metric).mean == pytest.approx(1.0)
    scores = DetectionScores(DetectionPredictions.load(tmp_path), summary)
    assert scores.balance("crowd") == (0, 0, 0)
    assert "false alarm" not in [rank for rank, _ in ranked_images(scores)]


@pytest.mark.parametrize("criterion", ["iou", "centre"])
def test_a_crowd_of_another_class_excuses_nothing(criterion: str) -> None:
    found = [Boxes.of(INSIDE, [0, 1], [0.9, 0.8])]
    crowded = [replace(Boxes.of([BOX], [0]), ignored=Boxes.of([CROWD], [1]))]
    matched = match_froc(found, crowded, None, criterion=criterion)  # type: ignore[arg-type]
    assert matched.hit[:, 0].tolist() == [FALSE, -1]
