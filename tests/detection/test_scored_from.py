"""Scores of boxes belong to weights, detections and annotations that are there, or nobody takes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from medkd.core.boxes import BoxAnnotation
from medkd.core.checkpoint import load_checkpoint, save_checkpoint
from medkd.core.errors import DataError, RunError
from medkd.detection.store import DetectionStore
from medkd.detection.validation import finish_fold
from medkd.evaluation.cross_validation import cross_validate
from medkd.evaluation.detection.intervals import crossed_differences
from medkd.evaluation.detection.metrics import compare_boxes
from medkd.evaluation.detection.predictions import Boxes
from medkd.evaluation.done import why_not_scored
from medkd.evaluation.report.detection_scores import DetectionScores
from tests.detection import stub
from tests.detection.builders import make_dataset, make_store

VAL = ("image_00", "image_01", "image_02", "image_07")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose fold 0 was trained and scored."""
    raw = make_dataset(tmp_path)
    store = make_store(raw, tmp_path / "store", 96)
    run = stub.make_run(tmp_path, raw)
    job = stub.make_job(run, store.folder, VAL)
    finish_fold(job.folder, DetectionStore(job.store), raw, job.val, job.device)
    return run


def refused(run: Path, *words: str) -> None:
    """Nobody takes the scores of fold 0: cross-validation, reports, recipes and compressions."""
    why = why_not_scored(run / "fold_0")
    assert why is not None and all(word in why for word in words), why
    for reads in (lambda: cross_validate(run, expected=1), lambda: DetectionScores.read(run, [0])):
        with pytest.raises(RunError, match=r"with --continue"):
            reads()


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_scores_are_taken_where_nothing_that_matters_has_changed(run: Path, tmp_path: Path) -> None:
    assert why_not_scored(run / "fold_0") is None
    label = tmp_path / "raw" / run.parent.name / "labelsTr" / "image_00.json"
    label.write_text(json.dumps(json.loads(label.read_text()), indent=7))  # the same boxes
    assert why_not_scored(run / "fold_0") is None
    assert cross_validate(run, expected=1).summary.value("AP50").mean == 1.0
    assert "scored_from" not in json.loads((run / "crossval" / "summary.json").read_text()), "it is the fold's own"
    (tmp_path / "raw").rename(tmp_path / "elsewhere")
    assert why_not_scored(run / "fold_0") is None


def test_scores_of_other_boxes_weights_or_detections_are_refused(run: Path, tmp_path: Path) -> None:
    label = tmp_path / "raw" / run.parent.name / "labelsTr" / "image_00.json"
    drawn = BoxAnnotation.load(label)
    (left, top, right, bottom) = drawn.boxes[0]
    change(label, boxes=[[left - 1, top, right, bottom]])
    refused(run, str(label), "has changed since")
    change(label, boxes=[list(drawn.boxes[0])], ignored=[[1, 1, 9, 9]], ignored_names=["fracture"])
    refused(run, str(label), "has changed since")
    drawn.save(label)
    assert why_not_scored(run / "fold_0") is None
    final = run / "fold_0" / "checkpoint_final.pt"
    content = load_checkpoint(final)
    moved = {name: value + torch.ones_like(value) for name, value in content["network"].items()}
    save_checkpoint(final, {**content, "network": moved})
    refused(run, "other weights")
    save_checkpoint(final, content)
    assert why_not_scored(run / "fold_0") is None
    change(run / "plans.json", image_size=128)
    refused(run, "another plan")


def test_scores_of_other_detections_are_refused(run: Path) -> None:
    found = run / "fold_0" / "validation" / "predictions.json"
    found.write_text(found.read_text() + "\n")
    refused(run, str(found), "has changed since")


def test_summaries_of_earlier_versions_are_read_and_their_boxes_compared(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary = run / "fold_0" / "validation" / "summary.json"
    content = json.loads(summary.read_text())
    del content["scored_from"]
    summary.write_text(json.dumps(content))
    assert why_not_scored(run / "fold_0") is None and "does not say what it was scored from" in caplog.text
    label = tmp_path / "raw" / run.parent.name / "labelsTr" / "image_07.json"
    change(label, boxes=[[1, 1, 9, 9]], names=["fracture"])
    refused(run, str(label))


@pytest.mark.parametrize("moved", ["boxes", "ignored"])
def test_pairs_scored_against_other_boxes_are_not_compared(moved: str) -> None:
    box, other = Boxes.of([[10, 10, 50, 50]], [0]), Boxes.of([[100, 100, 150, 150]], [0])
    found = [Boxes.of([[10, 10, 50, 50]], [0], [0.9])] * 8
    against = {
        "boxes": other,
        "ignored": Boxes(box.boxes, box.classes, box.scores, ignored=other),
    }[moved]
    ours, theirs = (compare_boxes(found, [truth] * 8, ["a"]) for truth in (box, against))
    with pytest.raises(DataError, match="same images, reference boxes and classes only"):
        crossed_differences([ours], [theirs])
    assert crossed_differences([ours], [ours])["", "AP"].mean == 0.0
