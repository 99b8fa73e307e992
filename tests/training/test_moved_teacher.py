"""A teacher that lies elsewhere by now, or is called otherwise, is the same one by its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medkd.core.errors import RunError
from medkd.core.made_from import note_inputs
from medkd.core.moved import lies_at, note_moved
from medkd.core.run import Budget, NetworkSpec, RunDescription, StartWeights
from medkd.core.run_files import ScoredTeacher
from medkd.core.serial import load, save
from medkd.training.options import TrainOptions
from medkd.training.run_folder import SharedFacts, open_fold
from medkd.training.segmentation_task import dry_run, train_distill
from medkd.training.teacher_scores import score_teacher
from tests.training.builders import NAME, make_dataset
from tests.training.test_teacher_scores import make_model

QUICK = {"epochs": 1, "iterations_per_epoch": 1, "workers": 0, "device": "cpu", "validate": False}


def test_students_go_on_with_a_teacher_that_was_moved_and_called_otherwise(tmp_path: Path) -> None:
    pytest.importorskip("monai", reason="the teacher is MONAI's")
    make_dataset(tmp_path)
    model, options = make_model(tmp_path / "old" / "net", 1), TrainOptions(root=tmp_path, resume=True, **QUICK)

    def taught(teacher: Path, fold: int) -> Path:
        return train_distill(900, str(teacher), "plain_unet", "kd", fold, options)

    def would(teacher: Path, fold: int) -> str:
        return dry_run(900, "plain_unet", fold, options, str(teacher), "kd")[0]

    run = taught(model, 0).parent
    weights = (run / "fold_0" / "checkpoint_final.pt").stat()
    (tmp_path / "old").rename(tmp_path / "new")
    moved = tmp_path / "new" / "net"
    assert taught(moved, 0) == run / "fold_0" and (run / "fold_0" / "checkpoint_final.pt").stat() == weights
    described = load(RunDescription, run / "run.json")
    assert described.taught_by == (described.teacher,) == (str(moved),)
    assert f"{run}/fold_1 (new)" in would(moved, 1)
    renamed = moved.rename(tmp_path / "better")
    assert taught(renamed, 2) == run / "fold_2" and f"{run}/fold_0 (finished)" in would(renamed, 0)
    assert load(RunDescription, run / "run.json").taught_by == (str(renamed),)
    assert all(lies_at(run / f"fold_{fold}", str(renamed), str(renamed)) for fold in (0, 2))

    other = make_model(tmp_path / "another" / "net", 2)
    with pytest.raises(RunError, match=r"holds fold_0, fold_2 of a run with other settings \(teacher: .*better"):
        would(other, 3)
    copy = make_model(tmp_path / "copy", 1)
    assert "from_copy/fold_3 (new)" in would(copy, 3), "its copy has students of its own"
    run.rename(run.with_name(f"{run.name}_kept"))
    assert "from_better/fold_0 (new)" in would(renamed, 0), "a run that somebody put aside stays there"


def test_first_weights_are_the_same_by_their_content(tmp_path: Path) -> None:
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    old.write_bytes(b"weights")
    path = tmp_path / "root" / "results" / NAME / "run"
    start = StartWeights(source=str(old), file=str(old), origin="file", sha256="ab")
    spec = NetworkSpec(name="unet_tiny", in_channels=1, num_outputs=3, patch_size=(16, 16, 16))
    run = RunDescription(
        dataset=NAME, configuration="3d_fullres", network=spec, budget=Budget(1, 1, 1, 0.1, 0), mirror_axes=()
    )
    given: tuple[dict[str, Any], ...] = {"weights": start}, {"backbone_weights": str(old)}
    there: tuple[dict[str, Any], ...] = (
        {"weights": replace(start, source=str(new), file=str(new))},
        {"backbone_weights": str(new)},
    )
    others: tuple[dict[str, Any], ...] = (
        {"weights": replace(start, sha256="cd")},
        {"backbone_weights": str(tmp_path / "other.pt")},
    )
    note_inputs(path / "fold_0", "3d_fullres", [old])
    (path / "fold_0" / "checkpoint_latest.pt").touch()
    (tmp_path / "other.pt").write_bytes(b"others")
    old.rename(new)
    facts = SharedFacts({}, lambda path: {})
    for first, moved, other in zip(given, there, others, strict=True):
        save(path / "run.json", replace(run, **first))
        assert open_fold(path, "0", replace(run, **moved), facts, resume=True, overwrite=False) == path / "fold_0"
        with pytest.raises(RunError, match="weights"):
            open_fold(path, "0", replace(run, **other), facts, resume=True, overwrite=False)


def test_scores_of_a_model_follow_it(tmp_path: Path) -> None:
    pytest.importorskip("monai", reason="the model is MONAI's")
    make_dataset(tmp_path)
    model = make_model(tmp_path / "net", 1)
    folder = score_teacher(900, model, 0, root=tmp_path, device="cpu")
    renamed = model.rename(tmp_path / "better")
    assert score_teacher(900, renamed, 0, root=tmp_path, device="cpu") == folder and folder.parent.name == "net"
    again = renamed.rename(tmp_path / "best")
    note_moved(folder.parent, str(renamed), str(again))
    record = load(ScoredTeacher, folder / "scored_teacher.json")
    assert (record.path, record.former) == (str(again), (str(renamed), str(model)))
    assert lies_at(folder, str(again), str(again)) and not lies_at(folder, str(again), str(tmp_path))
