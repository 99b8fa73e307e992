"""Training and distilling detectors by the commands: names, continuation, teachers, the guard against leaks,
refusals.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import medkd.detection.api as api
from medkd.cli.train import main as train_main
from medkd.cli.train_distill import main as distill_main
from medkd.core.boxes import BoxAnnotation
from medkd.core.checkpoint import save_checkpoint
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError, LeakError, MedkdError, MethodError, PlanError, RunError
from medkd.core.features import Tap
from medkd.core.files import write_json
from medkd.core.run import BEST, FINAL
from medkd.detection.api import distill_detector, dry_run_detector, train_detector
from medkd.detection.base import DETECTORS, Detections, Detector, DetectorEntry, DetectorSpec
from medkd.detection.job import DetectionJob
from medkd.detection.options import DetectorOptions
from medkd.detection.plan import DetectionPlan
from medkd.detection.predict import predict_detections
from medkd.detection.prepare import plan_and_preprocess_detection
from medkd.detection.trained import DetectionRun
from medkd.evaluation.detection.folder import evaluate_detection_folder
from medkd.evaluation.detection.predictions import DetectionPredictions
from medkd.training.logs import read_log
from tests.detection.builders import make_dataset

NAME = "Dataset502_Tiny"
STUB = "quick_stub"
JOBS: list[DetectionJob] = []


class Stub(Detector):
    """A detector that finds nothing and is trained by being written down."""

    family = "torchvision"
    taps = (Tap(name="p3", channels=4, stride=(8, 8), module="neck", stage="neck"),)

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.neck = nn.Conv2d(3, 4, 1)
        self.head = nn.Conv2d(4, len(spec.categories), 1)

    def detect(
        self, images: Tensor, score: float = 0.001, overlap: float | None = None, most: int = 300
    ) -> list[Detections]:
        none = torch.zeros(0)
        return [Detections(none.reshape(0, 4), none, none.long()) for _ in images]


def write_down(job: DetectionJob) -> None:
    JOBS.append(job)
    save_checkpoint(job.folder / FINAL, {"schema": 1, "network": job.detector.state_dict()})


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    if STUB not in DETECTORS:
        DETECTORS.register(STUB)(DetectorEntry("torchvision", Stub, "for tests"))
    monkeypatch.setattr(api, "_fit", write_down)
    JOBS.clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_dataset(tmp_path, images=10, negatives=2)
    plan_and_preprocess_detection(502, root=tmp_path, workers=1)
    return tmp_path


def options(root: Path, **changes: object) -> DetectorOptions:
    values: dict = {
        "root": root,
        "epochs": 2,
        "iterations_per_epoch": 3,
        "batch_size": 2,
        "workers": 0,
        "device": "cpu",
        "validate": False,
    }
    return DetectorOptions(**{**values, **changes})


def results(root: Path) -> Path:
    return root / "results" / NAME


def test_a_run_folder_says_what_was_trained(root: Path) -> None:
    folder = train_detector(502, STUB, 0, options(root, seed=4, learning_rate=0.5))
    assert folder == results(root) / f"{STUB}__detection" / "fold_0"
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
    assert JOBS[0].distiller is None and JOBS[0].store == root / "preprocessed" / NAME / "detection"


def test_what_is_not_said_is_the_plans(root: Path) -> None:
    plan = DetectionPlan.load(root / "preprocessed" / NAME / "plans.json")
    train_detector(502, STUB, 0, DetectorOptions(root, device="cpu", validate=False))
    budget = JOBS[0].budget
    assert (budget.epochs, budget.batch_size, budget.learning_rate) == (
        plan.epochs,
        plan.batch_size,
        plan.learning_rate,
    )
    assert budget.iterations_per_epoch == 0 and JOBS[0].plan == plan


def test_training_twice_needs_a_word(root: Path) -> None:
    folder = train_detector(502, STUB, 0, options(root))
    with pytest.raises(RunError, match="was trained before"):
        train_detector(502, STUB, 0, options(root))
    assert train_detector(502, STUB, 0, options(root, resume=True)) == folder and len(JOBS) == 1
    with pytest.raises(RunError, match="other settings"):
        train_detector(502, STUB, 0, options(root, resume=True, epochs=9))
    with pytest.raises(RunError, match="other settings"):
        train_detector(502, STUB, 1, options(root, image_size=64))
    assert train_detector(502, STUB, 0, options(root, tag="long", epochs=9)).parent.name == f"{STUB}__detection__long"
    (folder / "left.txt").touch()
    train_detector(502, STUB, 0, options(root, overwrite=True, epochs=9))
    assert not (folder / "left.txt").exists()
    (folder / FINAL).rename(folder / BEST)  # killed after its best epoch
    with pytest.raises(RunError, match="was trained before"):
        train_detector(502, STUB, 0, options(root, epochs=9))
    train_detector(502, STUB, 0, options(root, resume=True, epochs=9))
    assert JOBS[-1].resume


def test_a_student_starts_equal_alone_and_under_every_method(root: Path) -> None:
    train_detector(502, STUB, 0, options(root))
    for method in ("none", "cwd"):
        distill_detector(502, STUB, STUB, method, 0, options(root))
    alone, *taught = (job.detector.state_dict() for job in JOBS)
    assert all(torch.equal(alone[name], state[name]) for state in taught for name in alone)
    assert JOBS[2].distiller is not None and JOBS[2].distiller.teacher is not None
    assert not torch.equal(train_weights(root, seed=1), alone["neck.weight"])
    names = sorted(p.name for p in results(root).iterdir())
    assert names == [
        f"{STUB}__detection",
        f"{STUB}__detection__cwd__from_{STUB}",
        f"{STUB}__detection__none__from_{STUB}",
    ] + [f"{STUB}__detection__s"]
    assert DetectionRun.load(results(root) / names[1]).run.teacher == STUB


def train_weights(root: Path, seed: int) -> Tensor:
    train_detector(502, STUB, 0, options(root, seed=seed, tag="s"))
    return JOBS[-1].detector.state_dict()["neck.weight"]


def test_a_teacher_must_not_have_seen_the_validation_images(root: Path) -> None:
    train_detector(502, STUB, 1, options(root))
    with pytest.raises(LeakError, match="on which fold 0 of the student is judged"):
        distill_detector(502, STUB, STUB, "cwd", 0, options(root))
    distill_detector(502, STUB, STUB, "cwd", 1, options(root))
    seen = json.loads((results(root) / f"{STUB}__detection__cwd__from_{STUB}/fold_1/split.json").read_text())
    assert set(seen["teacher_train"]) == set(seen["train"])
    with pytest.raises(LeakError):  # the student has learnt from a teacher that has seen them
        distill_detector(502, f"{STUB}__detection__cwd__from_{STUB}", STUB, "cwd", 0, options(root, tag="second"))


@pytest.mark.parametrize(
    ("categories", "text"), [(("metal",), "other classes"), (("text", "fracture"), "other classes")]
)
def test_a_teacher_with_other_classes_is_refused(
    root: Path, tmp_path: Path, categories: tuple[str, ...], text: str
) -> None:
    folder = train_detector(502, STUB, 0, options(root)).parent
    replace(DetectionPlan.load(folder / "plans.json"), categories=categories).save(folder / "plans.json")
    with pytest.raises(RunError, match=text):
        distill_detector(502, STUB, STUB, "cwd", 0, options(root))


def given_weights(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(77)
    content: dict = {"network": STUB, "categories": ["fracture"], "train": [], "weights": "best.pt", **changes}
    torch.save(Stub(DetectorSpec(STUB, tuple(content["categories"]), 64)).state_dict(), folder / "best.pt")
    write_json(folder / "teacher.json", {k: v for k, v in content.items() if v is not None})
    return folder


def test_weights_from_elsewhere_teach_if_they_say_what_they_have_seen(root: Path, tmp_path: Path) -> None:
    folder = given_weights(tmp_path / "theirs")
    path = distill_detector(502, str(folder), STUB, "cwd", 0, options(root))
    assert path.parent.name == f"{STUB}__detection__cwd__from_theirs"
    distiller = JOBS[-1].distiller
    assert distiller is not None and distiller.teacher is not None
    given = torch.load(folder / "best.pt", weights_only=True)
    assert torch.equal(distiller.teacher.state_dict()["neck.weight"], given["neck.weight"])
    distill_detector(502, str(folder / "best.pt"), STUB, "cwd", 1, options(root))

    with pytest.raises(LeakError, match="for example image_0"):
        given_weights(folder, train=[f"image_{i:02d}" for i in range(10)])
        distill_detector(502, str(folder), STUB, "kd", 0, options(root))
    with pytest.raises(RunError, match="other classes"):
        distill_detector(502, str(given_weights(folder, categories=["metal"])), STUB, "kd", 0, options(root))
    with pytest.raises(MedkdError, match="'train' is missing"):
        distill_detector(502, str(given_weights(folder, train=None)), STUB, "kd", 0, options(root))
    with pytest.raises(RunError, match="outside of the folder"):
        distill_detector(502, str(given_weights(folder, weights="../best.pt")), STUB, "kd", 0, options(root))
    (folder / "teacher.json").unlink()
    with pytest.raises(RunError, match=r"put a teacher\.json beside it"):
        distill_detector(502, str(folder / "best.pt"), STUB, "kd", 0, options(root))


def test_teachers_and_students_with_other_anchors_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found before anything is written; weights from elsewhere must say their anchors."""
    monkeypatch.setattr(Stub, "anchors", property(lambda self: ((self.spec.anchor_scale, 1.0),)))
    folder = given_weights(tmp_path / "theirs", anchor_scale=77.0)
    with pytest.raises(MethodError, match="anchors"):
        distill_detector(502, str(folder), STUB, "kd", 0, options(root))
    assert not results(root).exists()
    distill_detector(502, str(folder), STUB, "cwd", 0, options(root))
    with pytest.raises(RunError, match=r"quick_stub has anchors, but 'anchor_scale' is missing"):
        distill_detector(502, str(given_weights(folder)), STUB, "cwd", 1, options(root))


def test_the_weights_it_started_from_belong_to_a_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Path] = []
    monkeypatch.setattr(api, "start_from", lambda detector, path: started.append(path))
    folder = train_detector(502, STUB, 0, options(root, backbone_weights=Path("r18.pth")))
    assert started == [Path("r18.pth")] and str(DetectionRun.load(folder.parent).run.backbone_weights).endswith(
        "r18.pth"
    )
    with pytest.raises(RunError, match="backbone_weights"):
        train_detector(502, STUB, 1, options(root))


def trained_elsewhere(folder: Path, seen: list[str], taught: list[str]) -> Path:
    """The fold folder of some run, with weights."""
    write_json(folder / "split.json", {"train": seen, "val": [], "teacher_train": taught})
    (folder / "ultralytics/weights").mkdir(parents=True)
    return folder


@pytest.mark.parametrize("file", [FINAL, "ultralytics/weights/last.pt"])
@pytest.mark.parametrize("by", ["itself", "its teacher"])
def test_weights_to_start_from_must_not_have_seen_the_validation_images(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, by: str
) -> None:
    monkeypatch.setattr(api, "start_from", lambda detector, path: None)
    everything = [f"image_{i:02d}" for i in range(10)]
    parts = (everything, []) if by == "itself" else ([], everything)
    folder = trained_elsewhere(tmp_path / "fold_all", *parts)
    (folder / file).touch()
    with pytest.raises(
        LeakError, match=r"was trained on 2 of the 2 cases on which fold 0 is judged, for example image_0"
    ):
        train_detector(502, STUB, 0, options(root, backbone_weights=folder / file))
    (tmp_path / "link.pt").symlink_to(folder / file)
    with pytest.raises(LeakError):
        dry_run_detector(502, STUB, 0, options(root, backbone_weights=tmp_path / "link.pt"))
    assert not JOBS


def test_what_the_first_weights_have_seen_counts_as_seen_by_the_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "start_from", lambda detector, path: None)
    train_detector(502, STUB, 0, options(root))
    split = json.loads((results(root) / f"{STUB}__detection/fold_0/split.json").read_text())
    folder = trained_elsewhere(tmp_path / "fold_9", split["train"][:2], ["other"])
    started = train_detector(502, STUB, 0, options(root, backbone_weights=folder / FINAL, tag="s"))
    assert json.loads((started / "split.json").read_text())["teacher_train"] == sorted([*split["train"][:2], "other"])
    taught = distill_detector(502, STUB, STUB, "cwd", 0, options(root, backbone_weights=folder / FINAL, tag="s"))
    assert json.loads((taught / "split.json").read_text())["teacher_train"] == sorted([*split["train"], "other"])


def test_weights_to_start_from_may_say_beside_them_what_they_have_seen(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "start_from", lambda detector, path: None)
    theirs = given_weights(tmp_path / "theirs", train=[f"image_{i:02d}" for i in range(10)]) / "best.pt"
    with pytest.raises(LeakError, match="backbone-weights"):
        train_detector(502, STUB, 0, options(root, backbone_weights=theirs))


def test_unknown_names_are_answered_with_the_nearest(root: Path) -> None:
    with pytest.raises(RunError, match=f"Did you mean '{STUB}'"):
        train_detector(502, "quik_stub", 0, options(root))
    train_detector(502, STUB, 0, options(root))
    with pytest.raises(RunError, match=f"Runs found: {STUB}__detection"):
        distill_detector(502, "other", STUB, "cwd", 0, options(root))
    with pytest.raises(MedkdError, match="not defined for detectors"):
        distill_detector(502, STUB, STUB, "bckd", 0, options(root))
    with pytest.raises(
        MethodError, match=r"Unknown method 'pdk'\. Did you mean 'pkd'\? Known for detectors: .*rkd.*ultralytics"
    ) as caught:
        distill_detector(502, STUB, STUB, "cwd+pdk", 0, options(root))
    assert not {"bckd", "cirkd", "reviewkd"} & set(
        str(caught.value).replace(",", "").replace(".", "").split()
    )  # not for detectors
    with pytest.raises(DataError, match="Fold '9' does not exist"):
        train_detector(502, STUB, 9, options(root))


def test_sizes_must_fit(root: Path) -> None:
    with pytest.raises(PlanError, match="multiple of 32"):
        train_detector(502, STUB, 0, options(root, image_size=50))
    plan_and_preprocess_detection(502, root=root, workers=1, image_size=64)
    with pytest.raises(PlanError, match="are stored with 64 px"):
        train_detector(502, STUB, 0, options(root, image_size=96))
    train_detector(502, STUB, 0, options(root, image_size=32))
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
        train_detector(502, STUB, 0, options(tmp_path))
    with caplog.at_level("WARNING"):
        train_detector(502, STUB, 1, options(tmp_path, validate=True))
    assert (
        "fold 1 is trained without any box of metal" in caplog.text
        and "judged without any box of fracture" in caplog.text
    )
    train_detector(502, STUB, 2, options(tmp_path, validate=True))  # nothing to find among its validation images
    assert (results(tmp_path) / f"{STUB}__detection/fold_2/validation/summary.json").exists()


def test_a_data_set_of_all_images_without_boxes_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path, images=4, negatives=4)
    with pytest.raises(PlanError, match="no box in any of its 4 training images"):
        plan_and_preprocess_detection(502, root=tmp_path, workers=1)


def test_the_end_of_a_fold_is_scored_and_can_be_continued(root: Path) -> None:
    folder = train_detector(502, STUB, 0, options(root, validate=True))
    assert json.loads((folder / "validation/summary.json").read_text())["task"] == "detection"
    (folder / "validation/summary.json").unlink()
    train_detector(502, STUB, 0, options(root, validate=True, resume=True))
    assert (folder / "validation/summary.json").exists() and len(JOBS) == 1


def test_a_finished_fold_is_judged_on_the_images_that_it_held_out(root: Path) -> None:
    folder = train_detector(502, STUB, 0, options(root, validate=False))
    held_out = json.loads((folder / "split.json").read_text())["val"]
    splits = root / "preprocessed" / folder.parent.parent.name / "splits_final.json"
    first, *others = json.loads(splits.read_text())
    moved = {"train": [*first["train"][2:], *first["val"]], "val": first["train"][:2]}
    splits.write_text(json.dumps([moved, *others]))
    train_detector(502, STUB, 0, options(root, validate=True, resume=True))
    scored = json.loads((folder / "validation" / "predictions.json").read_text())
    assert len(JOBS) == 1 and set(scored["images"]) == set(held_out) != set(moved["val"])


def test_a_dry_run_tells_and_writes_nothing(root: Path) -> None:
    train_detector(502, STUB, 0, options(root))
    before = sorted(root.rglob("*"))
    lines = dry_run_detector(502, STUB, 0, options(root), STUB, "cwd")
    assert sorted(root.rglob("*")) == before and len(JOBS) == 1
    assert (
        "fold_0" in lines[0]
        and "2 epochs of 3 steps" in lines[1]
        and any("has seen 8 images and none of the 2" in x for x in lines)
    )


def test_the_commands_dispatch_on_the_task(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--root", str(root), "--epochs", "1", "--device", "cpu", "--no-validate"]
    assert train_main(["502", STUB, "0", *base, "--image-size", "64"]) == 0
    assert capsys.readouterr().out.strip().endswith("fold_0") and JOBS[-1].detector.spec.image_size == 64
    assert distill_main(["502", STUB, STUB, "cwd", "0", *base, "--set", "cwd.weight=2", "--dry-run"]) == 0
    assert "leak guard" in capsys.readouterr().out
    assert distill_main(["502", STUB, STUB, "cwd", "0", *base, "--set", "cwd.weight=2"]) == 0
    assert JOBS[-1].distiller is not None
    assert train_main(["502", STUB, "1", *base, "--patch-size", "64", "64"]) == 1
    assert "which --patch-size is not for" in capsys.readouterr().err


def test_an_absent_or_damaged_stored_image_is_named(root: Path) -> None:
    folder = root / "preprocessed" / NAME / "detection"
    (folder / "cases.json").unlink()
    with pytest.raises(DataError, match="run medkd_plan_and_preprocess"):
        train_detector(502, STUB, 0, options(root))


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
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str, student: str, method: str
) -> None:
    """Two steps of each family: teacher, student, prediction of its validation images, and their scores."""
    monkeypatch.undo()
    given = options(root, epochs=1, iterations_per_epoch=2, image_size=64, validate=True)
    train_detector(502, teacher, 0, replace(given, validate=False))
    fold = distill_detector(502, teacher, student, method, 0, given)
    val = json.loads((fold / "split.json").read_text())["val"]
    raw = root / "raw" / NAME
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
