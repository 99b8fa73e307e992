"""Training and distilling detectors by the commands: names, continuation, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medkd.cli.train import main as train_main
from medkd.cli.train_distill import main as distill_main
from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError, MedkdError, MethodError, PlanError, RunError
from medkd.core.files import write_json
from medkd.core.run import BEST, FINAL
from medkd.detection.models import DetectionRun
from medkd.detection.options import DetectorOptions
from medkd.detection.plan import DetectionPlan
from medkd.detection.predict import predict_detections
from medkd.detection.prepare import plan_and_preprocess_detection
from medkd.detection.task import dry_run, train, train_distill
from medkd.evaluation.detection.folder import evaluate_detection_folder
from medkd.evaluation.detection.predictions import DetectionPredictions
from medkd.training.logs import read_log
from tests.detection.builders import make_dataset
from tests.detection.quick import JOBS, NAME, STUB, options, results

pytestmark = pytest.mark.usefixtures("quick")


def test_a_run_folder_says_what_was_trained(tiny: Path) -> None:
    folder = train(502, STUB, 0, options(tiny, seed=4, learning_rate=0.5))
    assert folder == results(tiny) / f"{STUB}__detection" / "fold_0"
    run = DetectionRun.load(folder.parent)
    assert run.run.budget.__dict__ == {
        "epochs": 2,
        "iterations_per_epoch": 3,
        "batch_size": 2,
        "learning_rate": 0.5,
        "seed": 4,
    }
    assert (
        run.run.network.patch_size == (96, 96)
        and run.run.network.num_outputs == 1
        and run.spec == JOBS[0].detector.spec
    )
    split = json.loads((folder / "split.json").read_text())
    assert (tuple(split["train"]), tuple(split["val"])) == (JOBS[0].train, JOBS[0].val) and not set(
        split["train"]
    ) & set(split["val"])
    assert JOBS[0].distiller is None and JOBS[0].store == tiny / "preprocessed" / NAME / "detection"


def test_what_is_not_said_is_the_plans(tiny: Path) -> None:
    plan = DetectionPlan.load(tiny / "preprocessed" / NAME / "plans.json")
    train(502, STUB, 0, DetectorOptions(root=tiny, device="cpu", validate=False))
    budget = JOBS[0].budget
    assert (budget.epochs, budget.batch_size, budget.learning_rate) == (
        plan.epochs,
        plan.batch_size,
        plan.learning_rate,
    )
    assert budget.iterations_per_epoch == 0 and JOBS[0].plan == plan


def test_training_twice_needs_a_word(tiny: Path) -> None:
    folder = train(502, STUB, 0, options(tiny))
    with pytest.raises(RunError, match="was trained before"):
        train(502, STUB, 0, options(tiny))
    assert train(502, STUB, 0, options(tiny, resume=True)) == folder and len(JOBS) == 1
    with pytest.raises(RunError, match="other settings"):
        train(502, STUB, 0, options(tiny, resume=True, epochs=9))
    with pytest.raises(RunError, match="other settings"):
        train(502, STUB, 1, options(tiny, image_size=64))
    assert train(502, STUB, 0, options(tiny, tag="long", epochs=9)).parent.name == f"{STUB}__detection__long"
    (folder / "left.txt").touch()
    train(502, STUB, 0, options(tiny, overwrite=True, epochs=9))
    assert not (folder / "left.txt").exists()
    (folder / FINAL).rename(folder / BEST)  # killed after its best epoch
    with pytest.raises(RunError, match="was trained before"):
        train(502, STUB, 0, options(tiny, epochs=9))
    train(502, STUB, 0, options(tiny, resume=True, epochs=9))
    assert JOBS[-1].resume


def test_unknown_names_are_answered_with_the_nearest(tiny: Path) -> None:
    with pytest.raises(RunError, match=f"Did you mean '{STUB}'"):
        train(502, "quik_stub", 0, options(tiny))
    train(502, STUB, 0, options(tiny))
    with pytest.raises(RunError, match=f"Runs found: {STUB}__detection"):
        train_distill(502, "other", STUB, "cwd", 0, options(tiny))
    with pytest.raises(MedkdError, match="not defined for detectors"):
        train_distill(502, STUB, STUB, "bckd", 0, options(tiny))
    with pytest.raises(
        MethodError, match=r"Unknown method 'pdk'\. Did you mean 'pkd'\? Known for detectors: .*rkd.*ultralytics"
    ) as caught:
        train_distill(502, STUB, STUB, "cwd+pdk", 0, options(tiny))
    assert not {"bckd", "cirkd", "reviewkd"} & set(
        str(caught.value).replace(",", "").replace(".", "").split()
    )  # not for detectors
    with pytest.raises(DataError, match="Fold '9' does not exist"):
        train(502, STUB, 9, options(tiny))


def test_sizes_must_fit(tiny: Path) -> None:
    with pytest.raises(PlanError, match="multiple of 32"):
        train(502, STUB, 0, options(tiny, image_size=50))
    plan_and_preprocess_detection(502, root=tiny, workers=1, image_size=64)
    with pytest.raises(PlanError, match="are stored with 64 px"):
        train(502, STUB, 0, options(tiny, image_size=96))
    train(502, STUB, 0, options(tiny, image_size=32))
    assert JOBS[-1].detector.spec.image_size == 32 == JOBS[-1].plan.image_size


def test_folds_without_boxes_or_without_a_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = make_dataset(tmp_path, images=6, negatives=2, categories=("fracture", "metal"))
    write_json(
        raw / "splits_final.json",
        [
            {"train": ["image_04", "image_05"], "val": ["image_00"]},
            {"train": ["image_00", "image_02", "image_04"], "val": ["image_01", "image_05"]},
            {"train": ["image_00", "image_01"], "val": ["image_04", "image_05"]},
        ],
    )
    plan_and_preprocess_detection(502, root=tmp_path, workers=1)
    with pytest.raises(DataError, match="no box in its 2 training images"):
        train(502, STUB, 0, options(tmp_path))
    with caplog.at_level("WARNING"):
        train(502, STUB, 1, options(tmp_path, validate=True))
    assert (
        "fold 1 is trained without any box of metal" in caplog.text
        and "judged without any box of fracture" in caplog.text
    )
    train(502, STUB, 2, options(tmp_path, validate=True))  # nothing to find among its validation images
    assert (results(tmp_path) / f"{STUB}__detection/fold_2/validation/summary.json").exists()


def test_a_data_set_of_all_images_without_boxes_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path, images=4, negatives=4)
    with pytest.raises(PlanError, match="no box in any of its 4 training images"):
        plan_and_preprocess_detection(502, root=tmp_path, workers=1)


def test_the_end_of_a_fold_is_scored_and_can_be_continued(tiny: Path) -> None:
    folder = train(502, STUB, 0, options(tiny, validate=True))
    assert json.loads((folder / "validation/summary.json").read_text())["task"] == "detection"
    (folder / "validation/summary.json").unlink()
    train(502, STUB, 0, options(tiny, validate=True, resume=True))
    assert (folder / "validation/summary.json").exists() and len(JOBS) == 1


def test_a_finished_fold_is_judged_on_the_images_that_it_held_out(tiny: Path) -> None:
    folder = train(502, STUB, 0, options(tiny, validate=False))
    held_out = json.loads((folder / "split.json").read_text())["val"]
    splits = tiny / "preprocessed" / folder.parent.parent.name / "splits_final.json"
    first, *others = json.loads(splits.read_text())
    moved = {"train": [*first["train"][2:], *first["val"]], "val": first["train"][:2]}
    splits.write_text(json.dumps([moved, *others]))
    train(502, STUB, 0, options(tiny, validate=True, resume=True))
    scored = json.loads((folder / "validation" / "predictions.json").read_text())
    assert len(JOBS) == 1 and set(scored["images"]) == set(held_out) != set(moved["val"])


def test_a_dry_run_tells_and_writes_nothing(tiny: Path) -> None:
    train(502, STUB, 0, options(tiny))
    before = sorted(tiny.rglob("*"))
    lines = dry_run(502, STUB, 0, options(tiny), STUB, "cwd")
    assert sorted(tiny.rglob("*")) == before and len(JOBS) == 1
    assert (
        "fold_0" in lines[0]
        and "2 epochs of 3 steps" in lines[1]
        and any("has seen 8 images and none of the 2" in x for x in lines)
    )


def test_the_commands_dispatch_on_the_task(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--root", str(tiny), "--epochs", "1", "--device", "cpu", "--no-validate"]
    assert train_main(["502", STUB, "0", *base, "--image-size", "64"]) == 0
    assert capsys.readouterr().out.strip().endswith("fold_0") and JOBS[-1].detector.spec.image_size == 64
    assert distill_main(["502", STUB, STUB, "cwd", "0", *base, "--set", "cwd.weight=2", "--dry-run"]) == 0
    assert "leak guard" in capsys.readouterr().out
    assert distill_main(["502", STUB, STUB, "cwd", "0", *base, "--set", "cwd.weight=2"]) == 0
    assert JOBS[-1].distiller is not None
    assert train_main(["502", STUB, "1", *base, "--patch-size", "64", "64"]) == 1
    assert "--patch-size is for segmentation" in capsys.readouterr().err


def test_an_absent_or_damaged_stored_image_is_named(tiny: Path) -> None:
    folder = tiny / "preprocessed" / NAME / "detection"
    (folder / "cases.json").unlink()
    with pytest.raises(DataError, match="run medkd_plan_and_preprocess"):
        train(502, STUB, 0, options(tiny))


def test_raw_annotations_of_another_task_are_refused(tmp_path: Path) -> None:
    raw = make_dataset(tmp_path, images=3, negatives=0)
    BoxAnnotation(width=96, height=72, boxes=((1.0, 1.0, 9.0, 9.0),), names=("metal",)).save(
        raw / "labelsTr/image_01.json"
    )
    with pytest.raises(DataError, match=r"image_01\.json: Expected boxes of the classes fracture, found 'metal'"):
        plan_and_preprocess_detection(502, root=tmp_path, workers=1, verify=False)
    assert DatasetDescription.load(raw / "dataset.json").task == "detection"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("teacher", "student", "method"), [("yolov8n", "yolov8_r18", "cwd"), ("retinanet_r18", "fcos_r18", "pkd")]
)
def test_the_whole_way_with_real_detectors(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str, student: str, method: str
) -> None:
    """Two steps of each family: teacher, student, prediction of its validation images, and their scores."""
    monkeypatch.undo()
    given = options(tiny, epochs=1, iterations_per_epoch=2, image_size=64, validate=True)
    train(502, teacher, 0, replace(given, validate=False))
    fold = train_distill(502, teacher, student, method, 0, given)
    val = json.loads((fold / "split.json").read_text())["val"]
    raw = tiny / "raw" / NAME
    report = predict_detections(raw / "imagesTr", tmp_path / "out", fold.parent, device="cpu")
    assert len(report.predicted) == 10 and not report.failed
    assert evaluate_detection_folder(tmp_path / "out", raw).value("AP").n == 10
    again, judged = (
        DetectionPredictions.load(path / "predictions.json").images for path in (tmp_path / "out", fold / "validation")
    )
    assert sorted(judged) == sorted(val)
    for case in val:  # the stored images are the raw ones here, so that both are the same detections
        np.testing.assert_allclose(again[case].found.scores, judged[case].found.scores, atol=1e-4)
    alone, taught = (read_log(path)[-1].terms for path in (fold.parents[1] / f"{teacher}__detection/fold_0", fold))
    assert (
        set(taught) - set(alone) and json.loads((fold / "validation/summary.json").read_text())["task"] == "detection"
    )
