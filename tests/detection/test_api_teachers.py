"""Who may teach a detector, and what it may start from: the guard against leaks, weights from elsewhere, classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import medkd.detection.task as task
from medkd.core.errors import LeakError, MedkdError, MethodError, RunError
from medkd.core.files import write_json
from medkd.core.run import FINAL
from medkd.detection.models import DetectionRun
from medkd.detection.plan import DetectionPlan
from medkd.detection.task import dry_run, train, train_distill
from tests.detection.quick import JOBS, STUB, Stub, given_weights, options, results

pytestmark = pytest.mark.usefixtures("quick")


def test_a_student_starts_equal_alone_and_under_every_method(tiny: Path) -> None:
    train(502, STUB, 0, options(tiny))
    for method in ("none", "cwd"):
        train_distill(502, STUB, STUB, method, 0, options(tiny))
    alone, *taught = (job.detector.state_dict() for job in JOBS)
    assert all(torch.equal(alone[name], state[name]) for state in taught for name in alone)
    assert JOBS[2].distiller is not None and JOBS[2].distiller.teacher is not None
    assert not torch.equal(train_weights(tiny, seed=1), alone["neck.weight"])
    names = sorted(p.name for p in results(tiny).iterdir())
    assert names == [
        f"{STUB}__detection",
        f"{STUB}__detection__cwd__from_{STUB}",
        f"{STUB}__detection__none__from_{STUB}",
    ] + [f"{STUB}__detection__s"]
    assert DetectionRun.load(results(tiny) / names[1]).run.teacher == STUB


def train_weights(tiny: Path, seed: int) -> Tensor:
    train(502, STUB, 0, options(tiny, seed=seed, tag="s"))
    return JOBS[-1].detector.state_dict()["neck.weight"]


def test_a_teacher_must_not_have_seen_the_validation_images(tiny: Path) -> None:
    train(502, STUB, 1, options(tiny))
    with pytest.raises(LeakError, match="on which fold 0 of the student is judged"):
        train_distill(502, STUB, STUB, "cwd", 0, options(tiny))
    train_distill(502, STUB, STUB, "cwd", 1, options(tiny))
    seen = json.loads((results(tiny) / f"{STUB}__detection__cwd__from_{STUB}/fold_1/split.json").read_text())
    assert set(seen["teacher_train"]) == set(seen["train"])
    with pytest.raises(LeakError):  # the student has learnt from a teacher that has seen them
        train_distill(502, f"{STUB}__detection__cwd__from_{STUB}", STUB, "cwd", 0, options(tiny, tag="second"))


@pytest.mark.parametrize(
    ("categories", "text"), [(("metal",), "other classes"), (("text", "fracture"), "other classes")]
)
def test_a_teacher_with_other_classes_is_refused(
    tiny: Path, tmp_path: Path, categories: tuple[str, ...], text: str
) -> None:
    folder = train(502, STUB, 0, options(tiny)).parent
    replace(DetectionPlan.load(folder / "plans.json"), categories=categories).save(folder / "plans.json")
    with pytest.raises(RunError, match=text):
        train_distill(502, STUB, STUB, "cwd", 0, options(tiny))


def test_weights_from_elsewhere_teach_if_they_say_what_they_have_seen(tiny: Path, tmp_path: Path) -> None:
    folder = given_weights(tmp_path / "theirs")
    path = train_distill(502, str(folder), STUB, "cwd", 0, options(tiny))
    assert path.parent.name == f"{STUB}__detection__cwd__from_theirs"
    distiller = JOBS[-1].distiller
    assert distiller is not None and distiller.teacher is not None
    given = torch.load(folder / "best.pt", weights_only=True)
    assert torch.equal(distiller.teacher.state_dict()["neck.weight"], given["neck.weight"])
    train_distill(502, str(folder / "best.pt"), STUB, "cwd", 1, options(tiny))

    with pytest.raises(LeakError, match="for example image_0"):
        given_weights(folder, train=[f"image_{i:02d}" for i in range(10)])
        train_distill(502, str(folder), STUB, "kd", 0, options(tiny))
    for named in ("images/train/image_00.jpg", "image_00.png", "image_00_0000", "another_set_1"):
        given_weights(folder, train=[named])
        with pytest.raises(RunError, match=f"'train' names {named}, which is no case of the data set"):
            train_distill(502, str(folder), STUB, "kd", 0, options(tiny))
        with pytest.raises(RunError, match=f"'train' names {named}, which is no case of the data set"):
            dry_run(502, STUB, 0, options(tiny, backbone_weights=folder / "best.pt"))
    with pytest.raises(RunError, match="other classes"):
        train_distill(502, str(given_weights(folder, categories=["metal"])), STUB, "kd", 0, options(tiny))
    with pytest.raises(
        MedkdError, match="categories: expected one or more different categories, none called background"
    ):
        train_distill(502, str(given_weights(folder, categories=["background"])), STUB, "kd", 0, options(tiny))
    with pytest.raises(MedkdError, match="'train' is missing"):
        train_distill(502, str(given_weights(folder, train=None)), STUB, "kd", 0, options(tiny))
    with pytest.raises(RunError, match="outside of the folder"):
        train_distill(502, str(given_weights(folder, weights="../best.pt")), STUB, "kd", 0, options(tiny))
    (folder / "teacher.json").unlink()
    with pytest.raises(RunError, match=r"put a teacher\.json beside it"):
        train_distill(502, str(folder / "best.pt"), STUB, "kd", 0, options(tiny))


def test_teachers_and_students_with_other_anchors_are_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found before anything is written; weights from elsewhere must say their anchors."""
    monkeypatch.setattr(Stub, "anchors", property(lambda self: ((self.spec.anchor_scale, 1.0),)))
    folder = given_weights(tmp_path / "theirs", anchor_scale=77.0)
    with pytest.raises(MethodError, match="anchors"):
        train_distill(502, str(folder), STUB, "kd", 0, options(tiny))
    assert not results(tiny).exists()
    train_distill(502, str(folder), STUB, "cwd", 0, options(tiny))
    with pytest.raises(RunError, match=r"quick_stub has anchors, but 'anchor_scale' is missing"):
        train_distill(502, str(given_weights(folder)), STUB, "cwd", 1, options(tiny))


def test_the_weights_it_started_from_belong_to_a_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Path] = []
    monkeypatch.setattr(task, "start_from", lambda detector, path: started.append(path))
    folder = train(502, STUB, 0, options(tiny, backbone_weights=Path("r18.pth")))
    assert started == [Path("r18.pth")] and str(DetectionRun.load(folder.parent).run.backbone_weights).endswith(
        "r18.pth"
    )
    with pytest.raises(RunError, match="backbone_weights"):
        train(502, STUB, 1, options(tiny))


def trained_elsewhere(folder: Path, seen: list[str], taught: list[str]) -> Path:
    """The fold folder of some run, with weights."""
    write_json(folder / "split.json", {"train": seen, "val": [], "teacher_train": taught})
    (folder / "ultralytics/weights").mkdir(parents=True)
    return folder


@pytest.mark.parametrize("file", [FINAL, "ultralytics/weights/last.pt"])
@pytest.mark.parametrize("by", ["itself", "its teacher"])
def test_weights_to_start_from_must_not_have_seen_the_validation_images(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, by: str
) -> None:
    monkeypatch.setattr(task, "start_from", lambda detector, path: None)
    everything = [f"image_{i:02d}" for i in range(10)]
    parts = (everything, []) if by == "itself" else ([], everything)
    folder = trained_elsewhere(tmp_path / "fold_all", *parts)
    (folder / file).touch()
    with pytest.raises(
        LeakError, match=r"was trained on 2 of the 2 cases on which fold 0 is judged, for example image_0"
    ):
        train(502, STUB, 0, options(tiny, backbone_weights=folder / file))
    (tmp_path / "link.pt").symlink_to(folder / file)
    with pytest.raises(LeakError):
        dry_run(502, STUB, 0, options(tiny, backbone_weights=tmp_path / "link.pt"))
    assert not JOBS


def test_what_the_first_weights_have_seen_counts_as_seen_by_the_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "start_from", lambda detector, path: None)
    train(502, STUB, 0, options(tiny))
    split = json.loads((results(tiny) / f"{STUB}__detection/fold_0/split.json").read_text())
    folder = trained_elsewhere(tmp_path / "fold_9", split["train"][:2], ["other"])
    started = train(502, STUB, 0, options(tiny, backbone_weights=folder / FINAL, tag="s"))
    assert json.loads((started / "split.json").read_text())["teacher_train"] == sorted([*split["train"][:2], "other"])
    taught = train_distill(502, STUB, STUB, "cwd", 0, options(tiny, backbone_weights=folder / FINAL, tag="s"))
    assert json.loads((taught / "split.json").read_text())["teacher_train"] == sorted([*split["train"], "other"])


def test_weights_to_start_from_may_say_beside_them_what_they_have_seen(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "start_from", lambda detector, path: None)
    theirs = given_weights(tmp_path / "theirs", train=[f"image_{i:02d}" for i in range(10)]) / "best.pt"
    with pytest.raises(LeakError, match="backbone-weights"):
        train(502, STUB, 0, options(tiny, backbone_weights=theirs))
