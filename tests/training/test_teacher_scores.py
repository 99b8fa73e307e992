"""An imported teacher gets its row in the report: predicted on the cases that it never saw, scored like its students."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from medkd.core.errors import LeakError, RunError
from medkd.evaluation.report_data import compare, gather, teacher_of
from medkd.training.api import train_distill
from medkd.training.imported import prepare_if_new
from medkd.training.options import TrainOptions
from medkd.training.teacher_scores import score_teacher

NAME = "Dataset004_Hippocampus"
NUMBERS = ("001", "003", "004")


@pytest.fixture(scope="module")
def place(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A root with three hippocampus cases, prepared like a model of nnU-Net that has not seen the first."""
    base = tmp_path_factory.mktemp("scores")
    raw, source = base / "root" / "raw" / NAME, real_data / "hippocampus"
    names = [f"hippocampus_{number}" for number in NUMBERS]
    for kind in ("imagesTr", "labelsTr"):
        (raw / kind).mkdir(parents=True)
    for name in names:
        shutil.copy(next((source / "imagesTr").glob(f"{name}*.nii.gz")), raw / "imagesTr" / f"{name}_0000.nii.gz")
        shutil.copy(source / "labelsTr" / f"{name}.nii.gz", raw / "labelsTr")
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    described = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": len(names), "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(described))
    model = base / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    shutil.copytree(real_data / "nnunet_model" / "model", model, ignore=shutil.ignore_patterns("validation", "*.png"))
    splits = [{"train": names[1:], "val": names[:1]}, {"train": names[:2], "val": names[2:]}]
    (model / "splits_final.json").write_text(json.dumps(splits))
    prepare_if_new(4, str(model), base / "root", 1)
    return base / "root", model


@pytest.mark.real_data
def test_the_report_knows_the_teacher(place: tuple[Path, Path]) -> None:
    root, model = place
    folder = score_teacher(4, model, 0, root=root, device="cpu")
    assert folder == root / "results" / NAME / model.name / "fold_0"
    prediction = folder / "validation" / "hippocampus_001.nii.gz"
    made = prediction.stat().st_mtime_ns
    settings = {"epochs": 1, "iterations_per_epoch": 1, "workers": 0, "device": "cpu", "patch_size": (16, 24, 16), "width_divisor": 8}
    train_distill(4, str(model), "plain_unet", "kd", 0, TrainOptions(root=root, **settings))
    entries = gather(root / "results" / NAME)
    teacher, student = entries
    assert (teacher.role, student.role) == ("teacher", "distilled") and teacher_of(student, entries) == teacher
    assert teacher.summary is not None and teacher.summary.mean_dice > 0.8
    assert teacher.cost.parameters is not None and round(teacher.cost.parameters / 1e6, 2) == 5.6
    difference = compare(teacher, student)
    assert difference is not None and difference.mean > 0
    score_teacher(4, model, 0, root=root, device="cpu")
    assert prediction.stat().st_mtime_ns == made  # what is there is kept


@pytest.mark.real_data
def test_the_guard_holds_for_scores(place: tuple[Path, Path]) -> None:
    root, model = place
    with pytest.raises(LeakError, match="fold 1"):
        score_teacher(4, model, 1, root=root, device="cpu")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no model that was trained elsewhere"):
        score_teacher(4, tmp_path, 0, root=tmp_path)
