"""What the run folder of a detector refuses: folds of other classes, anchors, or ways to train."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medkd.core.errors import RunError
from medkd.core.files import read_json, write_json
from medkd.core.run import FINAL
from medkd.detection.plan import DetectionAugmentation, DetectionPlan
from medkd.detection.prepare import plan_and_preprocess_detection
from medkd.detection.task import dry_run, train
from tests.detection.builders import make_dataset
from tests.detection.quick import JOBS, NAME, STUB, options, results

pytestmark = pytest.mark.usefixtures("quick")
CATEGORIES = ("fracture", "metal")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with two classes of which fold 0 is trained."""
    make_dataset(tmp_path, images=10, negatives=2, categories=CATEGORIES)
    plan_and_preprocess_detection(502, root=tmp_path, workers=1)
    train(502, STUB, 0, options(tmp_path))
    return tmp_path


def edit_plan(root: Path, change: Callable[[DetectionPlan], DetectionPlan]) -> None:
    path = root / "preprocessed" / NAME / "plans.json"
    change(DetectionPlan.load(path)).save(path)


def test_folds_of_exchanged_classes_are_refused(root: Path) -> None:
    file = root / "raw" / NAME / "dataset.json"
    content = read_json(file)
    write_json(file, {**content, "categories": list(reversed(CATEGORIES)), "labels": exchanged(content["labels"])})
    plan_and_preprocess_detection(502, root=root, workers=1, overwrite_plan=True)
    before = (results(root) / f"{STUB}__detection/plans.json").read_text()
    with pytest.raises(RunError, match=r"other settings \(categories: \('fracture', 'metal'\) there, \('metal', 'fr"):
        train(502, STUB, 1, options(root))
    assert (results(root) / f"{STUB}__detection/plans.json").read_text() == before and len(JOBS) == 1


def exchanged(labels: dict[str, int]) -> dict[str, int]:
    return {"background": 0, **{name: 3 - value for name, value in labels.items() if value}}


CHANGES: list[tuple[str, Any]] = [
    ("anchor_scale", 0.75),
    ("augmentation", DetectionAugmentation(fliplr=0.0)),
    ("sampling", {"metal": 2.0}),
    ("negatives", 0.5),
    ("momentum", 0.5),
    ("weight_decay", 0.1),
    ("final_learning_rate", 1e-4),
]


@pytest.mark.parametrize(("name", "value"), CHANGES)
@pytest.mark.parametrize("start", [train, dry_run])
def test_folds_that_are_trained_otherwise_are_refused(
    root: Path, name: str, value: Any, start: Callable[..., object]
) -> None:
    edit_plan(root, lambda plan: replace(plan, **{name: value}))
    with pytest.raises(RunError, match=rf"other settings \({name}"):
        start(502, STUB, 1, options(root))
    with pytest.raises(RunError, match=rf"other settings \({name}"):
        start(502, STUB, 0, options(root, resume=True))
    start(502, STUB, 0, options(root, overwrite=True))  # nothing of the former is left then


def test_what_does_not_change_the_detector_may_change_between_folds(root: Path) -> None:
    edit_plan(root, lambda plan: replace(plan, reasons={"epochs": "a person said so"}))
    assert train(502, STUB, 1, options(root)).name == "fold_1"


def test_an_interrupted_fold_goes_on_with_its_own_images_only_and_a_dry_run_says_so(root: Path) -> None:
    folder = results(root) / f"{STUB}__detection/fold_0"
    (folder / FINAL).rename(folder / "checkpoint_latest.pt")
    splits = root / "preprocessed" / NAME / "splits_final.json"
    first, *others = json.loads(splits.read_text())
    first["train"][0], first["val"][0] = first["val"][0], first["train"][0]
    splits.write_text(json.dumps([first, *others]))
    for start in (dry_run, train):
        with pytest.raises(RunError, match="trained with other splits: 2 of its training cases differ"):
            start(502, STUB, 0, options(root, resume=True))
