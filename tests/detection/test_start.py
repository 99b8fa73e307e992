"""Detectors that start from their teacher: from the command to the first step, recorded, resumed, refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import medkd.detection.task as task
import medkd.detection.yolo.detectors as yolo
from medkd.cli.train_distill import main
from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import RunError
from medkd.core.files import read_json
from medkd.core.run import FINAL, RUN_FILE
from medkd.detection.base import DETECTORS, DetectorSpec
from medkd.detection.options import DetectorOptions
from medkd.detection.prepare import plan_and_preprocess_detection
from medkd.detection.task import dry_run, train, train_distill
from medkd.detection.yolo.library import DetectionModel, tasks, unchanged_process
from tests.detection.builders import make_dataset
from tests.detection.quick import NAME

WIDTHS = {"yolov8s": 0.125, "yolov8n": 0.0625}


def _options(root: Path, **changes: object) -> DetectorOptions:
    values: dict = {
        "root": root,
        "epochs": 1,
        "iterations_per_epoch": 1,
        "batch_size": 2,
        "workers": 0,
        "device": "cpu",
        "validate": False,
    }
    return DetectorOptions(**{**values, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("start")
    make_dataset(path, images=10, size=64, categories=("fracture", "metal"))
    plan_and_preprocess_detection(502, root=path, image_size=64)
    return path


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """YOLOv8 with a quarter of its channels, which a test can train."""

    def build(spec: DetectorSpec) -> yolo.YoloDetector:
        with unchanged_process():
            layout = tasks.yaml_model_load("yolov8n.yaml")
            layout |= {"scales": {"n": [0.33, WIDTHS[spec.name], 1024]}, "nc": len(spec.categories)}
            return yolo.YoloDetector(spec, DetectionModel(layout, ch=3, verbose=False))

    for name in WIDTHS:
        monkeypatch.setitem(DETECTORS._entries, name, DETECTORS[name].__class__("yolo", build, "narrow"))


def _first_layer(job: object) -> Tensor:
    return job.detector.model[0].conv.weight.detach().clone()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_student_starts_from_its_teacher_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(502, "yolov8s", 0, _options(root))
    started: list[Tensor] = []
    original = task.fit
    monkeypatch.setattr(task, "fit", lambda job: (started.append(_first_layer(job)), original(job)))
    folders = []
    for tag, init in (("random", "random"), ("start", "teacher"), ("again", "teacher")):
        folders.append(train_distill(502, "yolov8s", "yolov8n", "none", 0, _options(root, init=init, tag=tag)))
        assert read_json(folders[-1].parent / RUN_FILE)["init"] == init
    random, start, again = started
    assert torch.equal(start, again) and not torch.equal(start, random)
    first, second = (load_checkpoint(folder / FINAL)["network"] for folder in folders[1:])
    assert all(torch.equal(first[name], second[name]) for name in first)

    monkeypatch.setattr(task, "inherit", lambda *_: pytest.fail("inherited twice"))
    whole = train_distill(
        502, "yolov8s", "yolov8n", "none", 0, _options(root, init="teacher", tag="start", resume=True)
    )
    assert whole == folders[1]
    with pytest.raises(RunError, match="init: teacher there, random now"):
        train_distill(502, "yolov8s", "yolov8n", "none", 0, _options(root, tag="start", resume=True))


def test_a_killed_and_continued_run_does_not_start_from_the_teacher_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (root / "results" / NAME / "yolov8s__detection").exists():
        train(502, "yolov8s", 0, _options(root))
    from medkd.detection.yolo.trainer import YoloTrainer

    original = YoloTrainer.save_model

    def dying(self: YoloTrainer) -> bool:
        original(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(YoloTrainer, "save_model", dying)
    options = {"init": "teacher", "tag": "broken", "epochs": 2}
    with pytest.raises(KeyboardInterrupt):
        train_distill(502, "yolov8s", "yolov8n", "cwd", 0, _options(root, **options))
    monkeypatch.setattr(YoloTrainer, "save_model", original)
    monkeypatch.setattr(task, "inherit", lambda *_: pytest.fail("inherited twice"))
    folder = train_distill(502, "yolov8s", "yolov8n", "cwd", 0, _options(root, resume=True, **options))
    assert (folder / FINAL).exists()


def test_what_does_not_fit_is_one_sentence_and_leaves_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (root / "results" / NAME / "yolov8s__detection").exists():
        train(502, "yolov8s", 0, _options(root))
    before = sorted((root / "results" / NAME).iterdir())
    with pytest.raises(RunError, match="random, or teacher for a student that has a teacher"):
        train(502, "yolov8n", 0, _options(root, init="teacher", tag="x"))
    with pytest.raises(RunError, match="leave one of them out"):
        _options(root, init="teacher", backbone_weights=Path("yolov8n.pt"))
    with pytest.raises(RunError, match="--init must be one of random, teacher, found 'zero'"):
        _options(root, init="zero")
    command = ["502", "yolov8s", "fcos_r18", "none", "0", "--init", "teacher", "--root", str(root), "--device", "cpu"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "the student is a fcos_r18 and the teacher a yolov8s" in error and "Traceback" not in error
    assert sorted((root / "results" / NAME).iterdir()) == before
    lines = dry_run(502, "yolov8n", 0, _options(root, init="teacher", tag="dry"), "yolov8s", "none")
    assert "starts from its teacher" in "\n".join(lines)
