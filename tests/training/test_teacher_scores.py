"""An imported teacher gets its row in the report: predicted on the cases that it never saw, scored like its
students.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medkd.core.checkpoint import weights_digest
from medkd.core.errors import LeakError, RunError
from medkd.core.files import write_json
from medkd.core.made_from import MADE_FROM_FILE, note_inputs
from medkd.core.run import Budget, NetworkSpec, RunDescription
from medkd.core.run_files import ScoredTeacher
from medkd.core.serial import save
from medkd.evaluation.report.data import compare, teacher_of
from medkd.evaluation.report.read import gather
from medkd.models.base import open_model
from medkd.models.like import prepare_if_new
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import train, train_distill
from medkd.training.teacher_scores import find_scored, score_teacher
from tests.evaluation.folders import make_dataset as make_boxes
from tests.evaluation.folders import make_run
from tests.training.builders import NAME as BOXES
from tests.training.builders import make_dataset, write_scans

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
    prepare_if_new(4, open_model(model), base / "root", 1)
    return base / "root", model


def test_scores_of_weights_that_were_exchanged_count_for_nobody(tmp_path: Path) -> None:
    """The file of a model from elsewhere is another one by now, whether or not the scores say from which they are."""
    make_boxes(tmp_path, 8)
    make_run(tmp_path, "given", "unet_tiny", 1.0, {0: range(8)})
    results, network = tmp_path / "results" / "Dataset004_Test", torch.nn.Linear(2, 2)
    fold, file = results / "given" / "fold_0", tmp_path / "model" / "weights.pth"
    file.parent.mkdir()
    file.write_bytes(b"first")
    model: Any = SimpleNamespace(path=file.parent, teaching_folds=("0",), network=lambda fold: network)
    digest = weights_digest(network.state_dict())
    made = ScoredTeacher(path=str(file.parent), fold="0", weights=digest, patch_size=(8, 8, 8), mirror_axes=())
    save(fold / "scored_teacher.json", made)
    assert find_scored(results, model, "0") == results / "given"  # of an earlier version
    note_inputs(fold, "3d_fullres", [file])
    assert find_scored(results, model, "0") == results / "given" and find_scored(results, model, "1") is None
    file.write_bytes(b"second")
    assert find_scored(results, model, "0") is None
    with pytest.raises(RunError, match=r"weights\.pth holds other weights than when .* medkd_score_teacher"):
        gather(results, runs=["given"])
    stored = tmp_path / "preprocessed" / "Dataset004_Test" / "3d_fullres" / "one.json"
    for content in ("first", "another"):  # a scan that it predicted was prepared anew
        write_json(stored, {"recipe": "", "files": [{"content": content}], "read": content})
        if content == "first":
            note_inputs(fold, "3d_fullres", [file], ["one"])
        assert (find_scored(results, model, "0") is None) == (content == "another")
    (fold / MADE_FROM_FILE).unlink()
    torch.nn.init.zeros_(network.weight)
    assert find_scored(results, model, "0") is None


@pytest.mark.real_data
def test_the_report_knows_the_teacher(place: tuple[Path, Path]) -> None:
    root, model = place
    folder = score_teacher(4, model, 0, root=root, device="cpu")
    assert folder == root / "results" / NAME / model.name / "fold_0"
    prediction = folder / "validation" / "hippocampus_001.nii.gz"
    made = prediction.stat().st_mtime_ns
    settings = {
        "epochs": 1,
        "iterations_per_epoch": 1,
        "workers": 0,
        "device": "cpu",
        "patch_size": (16, 24, 16),
        "width_divisor": 8,
    }
    train_distill(4, str(model), "plain_unet", "kd", 0, TrainOptions(root=root, **settings))
    entries = gather(root / "results" / NAME)
    teacher, student = entries
    assert (teacher.role, student.role) == ("teacher", "distilled") and teacher_of(student, entries) is teacher
    assert teacher.scores.summary.mean_dice > 0.8
    assert teacher.cost.parameters is not None and round(teacher.cost.parameters / 1e6, 2) == 5.6
    difference = compare(teacher, student, "Dice")
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


def test_a_run_of_another_data_set_gets_its_row_too(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    write_scans(tmp_path)
    settings: dict[str, Any] = {"epochs": 1, "iterations_per_epoch": 1, "workers": 0, "device": "cpu"}
    options = TrainOptions(root=tmp_path, validate=False, **settings)
    own = train(BOXES, "plain_unet", 0, options).parent
    with pytest.raises(RunError, match="is a run of Dataset900_Boxes, which was scored when it was trained"):
        score_teacher(900, own, 0, root=tmp_path, device="cpu")
    other = "Dataset901_More"
    for above in ("raw", "preprocessed"):
        shutil.copytree(tmp_path / above / BOXES, tmp_path / above / other)
    folder = score_teacher(901, own, 0, root=tmp_path, device="cpu")
    assert folder == tmp_path / "results" / other / f"{own.name}__{BOXES}" / "fold_0"
    assert (folder / "validation" / "summary.json").is_file()
    with pytest.raises(LeakError, match="fold 1"):  # called alike, and nobody knows that they are others
        score_teacher(901, own, 1, root=tmp_path, device="cpu")
    train_distill(901, str(own), "unet_tiny", "kd", 0, TrainOptions(root=tmp_path, **settings))
    entries = gather(tmp_path / "results" / other)
    assert [entry.role for entry in entries] == ["teacher", "distilled"]
    assert teacher_of(entries[1], entries) is entries[0]


def make_model(folder: Path, seed: int) -> Path:
    """A described network with weights from a seed, whose file is older than everything that is predicted with it."""
    from monai.networks.nets import UNet

    arguments = {"channels": [4, 8], "strides": [2]}
    description = {
        "network": "UNet",
        "arguments": arguments,
        "channels": ["MR"],
        "labels": {"background": 0, "small": 1, "large": 2},
        "spacing": [1, 1, 1],
        "normalization": ["zscore"],
        "patch_size": [16, 16, 16],
        "interpolation": "spline",
        "weights": "weights.pt",
        "train": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "teacher.json").write_text(json.dumps(description))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.save(UNet(spatial_dims=3, in_channels=1, out_channels=3, **arguments).state_dict(), folder / "weights.pt")
    os.utime(folder / "weights.pt", (0, 0))
    return folder


def add_student(results: Path, teacher: Path) -> str:
    """A run that a model taught; returns its name."""
    name = f"unet_tiny__3d_fullres__kd__from_{teacher.parent.name}"
    spec, budget = (
        NetworkSpec(name="unet_tiny", in_channels=1, num_outputs=3, patch_size=(16, 16, 16)),
        Budget(1, 1, 1, 0.1, 0),
    )
    save(
        results / name / "run.json",
        RunDescription(
            dataset=BOXES,
            configuration="3d_fullres",
            network=spec,
            budget=budget,
            mirror_axes=(),
            method="kd",
            teacher=str(teacher),
        ),
    )
    return name


def predictions(folder: Path) -> dict[str, bytes]:
    """Case → its label map, packed."""
    return {path.name: path.read_bytes() for path in (folder / "validation").glob("*.nii.gz")}


def test_models_with_one_name_keep_their_own_scores(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    weak, strong = make_model(tmp_path / "weak" / "net", 1), make_model(tmp_path / "strong" / "net", 2)
    results = tmp_path / "results" / BOXES
    first, second = (score_teacher(900, model, 0, root=tmp_path, device="cpu") for model in (weak, strong))
    assert (first, second) == (results / "net" / "fold_0", results / "net__strong" / "fold_0")
    theirs, others = predictions(first), predictions(second)
    assert len(theirs) == 2 and theirs.keys() == others.keys() and all(theirs[case] != others[case] for case in theirs)
    students = {add_student(results, weak): "net", add_student(results, strong): "net__strong"}
    entries = gather(results)
    assert {e.name: taught.name for e in entries if (taught := teacher_of(e, entries)) is not None} == students
    twin = make_model(tmp_path / "elsewhere" / "strong" / "net", 3)
    with pytest.raises(
        RunError, match=f"net__strong holds the scores of the model {strong}, which has other weights than {twin};"
    ):
        score_teacher(900, twin, 0, root=tmp_path, device="cpu")


def test_scores_of_replaced_weights_are_made_anew(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    model = make_model(tmp_path / "net", 1)
    folder, other = (score_teacher(900, model, fold, root=tmp_path, device="cpu") for fold in (0, 1))
    before = predictions(folder)
    assert before and predictions(other)
    make_model(model, 2)
    assert score_teacher(900, model, 0, root=tmp_path, device="cpu") == folder
    after = predictions(folder)
    assert after.keys() == before.keys() and all(after[case] != before[case] for case in after)
    assert not predictions(other) and gather(folder.parents[1])[0].folds == ("0",)


def test_scores_that_nobody_signed_are_made_anew(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    model = make_model(tmp_path / "net", 1)
    folder = score_teacher(900, model, 0, root=tmp_path, device="cpu")
    right = predictions(folder)
    (folder / "scored_teacher.json").unlink()
    for case in right:
        (folder / "validation" / case).write_bytes(b"of another model")
    score_teacher(900, model, 0, root=tmp_path, device="cpu")
    assert predictions(folder) == right


def test_a_model_that_was_moved_keeps_its_scores_and_students(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    model, results = make_model(tmp_path / "old" / "net", 1), tmp_path / "results" / BOXES
    folder = score_teacher(900, model, 0, root=tmp_path, device="cpu")
    made = {path: path.stat().st_mtime_ns for path in (folder / "validation").glob("*.nii.gz")}
    student = add_student(results, model)
    (tmp_path / "old").rename(tmp_path / "new")
    assert score_teacher(900, tmp_path / "new" / "net", 0, root=tmp_path, device="cpu") == folder
    assert {path: path.stat().st_mtime_ns for path in made} == made
    entries = gather(results)
    taught = teacher_of(next(e for e in entries if e.name == student), entries)
    assert taught is not None and taught.path == folder.parent
