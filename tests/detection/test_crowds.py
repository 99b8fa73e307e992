"""Crowds in the store, and in what every epoch's validation says, against pycocotools' own count."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import DataError
from medkd.core.made_from import prepared_case
from medkd.core.run import Budget
from medkd.detection.base import Detections
from medkd.detection.images import drawn_images
from medkd.detection.letterbox import letterbox
from medkd.detection.options import DetectorOptions
from medkd.detection.prepare import plan_and_preprocess_detection
from medkd.detection.store import INDEX_FILE, DetectionStore
from medkd.detection.task import DetectionLesson, DetectionTask
from medkd.detection.tv.data import TrainingBatches
from medkd.detection.tv.training import DetectionTrainer, loop_settings
from medkd.evaluation.detection.coco import coco_scores
from medkd.evaluation.detection.predictions import Boxes
from medkd.training.logs import read_log
from medkd.training.run import rehearse
from tests.detection.builders import make_dataset, make_store
from tests.detection.tv.builders import build_narrow, job, make
from tests.optional import needs_ultralytics

SIZE = 64
CROWD = (8.0, 4.0, 60.0, 44.0)
FOUND = np.array([[10.0, 6, 40, 30], [30, 10, 58, 40], [0, 0, 62, 46]])  # two inside of the crowd, one around it
SCORES = np.array([0.9, 0.8, 0.7])


def crowded(folder: Path, case: str = "image_00", images: int = 4, negatives: int = 1) -> DetectionStore:
    """A store of which one image has a crowd."""
    raw = make_dataset(folder, images=images, size=SIZE, negatives=negatives)
    path = raw / "labelsTr" / f"{case}.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "ignored": [CROWD], "ignored_names": ["fracture"]}))
    return make_store(raw, folder / "store", SIZE)


def test_an_image_with_crowds_alone_is_no_negative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is neither drawn nor, by YOLO's mosaics, shown beside others, and has nothing to do with how many negatives
    are planned.
    """
    raw = make_dataset(tmp_path, images=8, size=96)  # the last two have no box
    path = raw / "labelsTr" / "image_07.json"
    data = json.loads(path.read_text())
    plan_and_preprocess_detection(502, root=tmp_path, image_size=SIZE, workers=1)
    folder = tmp_path / "preprocessed" / "Dataset502_Tiny"
    negative = prepared_case(folder / "detection", "image_07")
    path.write_text(json.dumps({**data, "ignored": [[20, 10, 96, 72]], "ignored_names": ["fracture"]}))
    plan_and_preprocess_detection(502, root=tmp_path, image_size=SIZE, workers=1, overwrite_plan=True)
    assert prepared_case(folder / "detection", "image_07") not in (negative, None)
    found = json.loads((folder / "fingerprint.json").read_text())
    assert (found["positives"], found["negatives"]) == (6, 1)
    build_narrow(monkeypatch)
    options = DetectorOptions(root=tmp_path, epochs=1, batch_size=2, workers=0, device="cpu", image_size=SIZE)
    lesson = rehearse(DetectionTask(), 502, "retinanet_r18", "all", options)[1]
    assert isinstance(lesson, DetectionLesson)
    assert "images     7 for training, 0 for validation, 1 with crowds alone left out" in lesson.lines()
    given, shown = lesson.family_job(), {f"image_{number:02d}" for number in range(7)}
    assert set(TrainingBatches(given, 4).drawn(0)) == shown == set(drawn_images(lesson.job))
    needs_ultralytics()
    from medkd.detection.yolo.data import write_data

    write_data(given, tmp_path / "yolo")
    assert {Path(line).stem for line in (tmp_path / "yolo" / "train.txt").read_text().splitlines()} == shown


def every_box(store: DetectionStore, case: str) -> np.ndarray:
    """What is found in an image: the box that was drawn, and beside a crowd three others."""
    drawn = store.drawn(case)
    return drawn.boxes if drawn.ignored is None else np.concatenate([drawn.boxes, FOUND])


def judged(store: DetectionStore, cases: Sequence[str]) -> float:
    """pycocotools' AP of it, in pixels of the stored images."""
    found = []
    for case in cases:
        boxes = every_box(store, case)
        found.append(Boxes.of(boxes, np.zeros(len(boxes)), [0.5, *SCORES][: len(boxes)]))
    return coco_scores(found, [store.drawn(case) for case in cases], store.categories)["", "AP"]


def test_a_store_holds_crowds_beside_boxes_and_older_ones_are_made_anew(tmp_path: Path) -> None:
    raw = make_dataset(tmp_path, images=8, size=96)
    path = raw / "labelsTr" / "image_00.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "ignored": [[20, 10, 96, 72]], "ignored_names": ["fracture"]}))
    plan_and_preprocess_detection(502, root=tmp_path, image_size=SIZE, workers=1, overwrite_plan=True)
    folder = tmp_path / "preprocessed" / "Dataset502_Tiny" / "detection"
    store = DetectionStore(folder)
    ignored = store.drawn("image_00").ignored
    assert ignored is not None and store.drawn("image_01").ignored is None
    np.testing.assert_allclose(ignored.boxes * 96 / SIZE, [[20, 10, 96, 72]], atol=0.01)
    assert len(store.boxes("image_00")[0]) == 1 and len(store.label_path("image_00").read_text().splitlines()) == 1
    learnt = prepared_case(folder, "image_00")
    older = json.loads((folder / INDEX_FILE).read_text())
    for entry in older["cases"].values():
        del entry["ignored"], entry["ignored_classes"]
    (folder / INDEX_FILE).write_text(json.dumps(older))
    assert prepared_case(folder, "image_00") == learnt, "nobody learns from crowds"
    assert DetectionStore(folder).drawn("image_00").ignored is None
    plan_and_preprocess_detection(502, root=tmp_path, workers=1)
    assert DetectionStore(folder).drawn("image_00").ignored is not None
    path.write_text(json.dumps({**data, "ignored": [[20, 10, 96, 72]], "ignored_names": ["screw"]}))
    with pytest.raises(DataError, match=r"image_00\.json.*'screw'"):
        plan_and_preprocess_detection(502, root=tmp_path, workers=1)


class _Finds(nn.Module):
    """Stands for a detector: finds fixed boxes of the stored image, on the square."""

    def __init__(self, store: DetectionStore, case: str, spec: Any) -> None:
        super().__init__()
        self.spec = spec
        _, place = letterbox(store.image(case), spec.image_size)
        self.boxes = torch.from_numpy(place.forth(every_box(store, case)))
        self.scores = torch.tensor([0.5, *SCORES])

    def detect(self, images: torch.Tensor, **limits: Any) -> list[Detections]:
        return [Detections(self.boxes, self.scores, torch.zeros(len(self.boxes), dtype=torch.long)) for _ in images]

    def losses(self, *batch: Any) -> Any:
        return {"loss": torch.zeros(())}, None, None


def test_validation_of_an_epoch_ignores_what_lies_in_crowds(tmp_path: Path) -> None:
    store = crowded(tmp_path)
    given = job(tmp_path, store, make("fcos_r18", classes=1))
    trainer = DetectionTrainer(given, loop_settings(given))
    assert given.val == ("image_00",)
    trainer.network = _Finds(store, "image_00", given.detector.spec)  # type: ignore[assignment]
    _, ours = trainer.validate()
    expected = judged(store, given.val)
    assert ours == pytest.approx(expected, abs=1e-6) and 0.4 < expected < 1.0


def test_validation_of_an_epoch_with_ultralytics_ignores_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_ultralytics()
    from medkd.detection.yolo import fit
    from medkd.detection.yolo.validator import StoreValidator
    from tests.detection.yolo.builders import make as make_yolo
    from tests.detection.yolo.builders import make_job

    given = make_job(tmp_path, make_yolo(), budget=Budget(1, 1, 2, 0.01, 0))
    store = crowded(tmp_path, given.val[0], images=6, negatives=2)
    own = StoreValidator.update_metrics

    def finds(validator: StoreValidator, preds: list, batch: dict) -> None:
        """Fixed boxes, in pixels of the rectangles that ultralytics shows."""
        found = []
        for file, ((gain, _), pad) in zip(batch["im_file"], batch["ratio_pad"], strict=True):
            boxes = torch.from_numpy(every_box(store, Path(file).stem)).float()
            scores = torch.tensor([0.5, *SCORES][: len(boxes)])
            moved = boxes * gain + torch.tensor([*pad, *pad])
            found.append({"bboxes": moved, "conf": scores, "cls": torch.zeros(len(boxes)), "extra": moved[:, :0]})
        own(validator, found, batch)

    monkeypatch.setattr(StoreValidator, "update_metrics", finds)
    fit(given)
    (record,) = read_log(given.folder)
    expected = judged(store, given.val)
    assert record.validation_score == pytest.approx(expected, abs=1e-4) and 0.4 < expected < 1.0
    assert load_checkpoint(given.folder / "checkpoint_best.pt")["score"] == pytest.approx(expected, abs=1e-4)
