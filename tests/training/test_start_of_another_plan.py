"""Students that start from a teacher of another plan, of other labels, or from the first of several."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from medkd.core.checkpoint import load_checkpoint, save_checkpoint
from medkd.core.errors import RunError
from medkd.core.files import read_json, write_json
from medkd.core.run import FINAL, RUN_FILE
from medkd.training.distillation import DistillationTrainer
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import dry_run, train, train_distill
from tests.training.builders import NAME, lend_store, make_dataset, write_scans

TEACHER = "plain_unet__3d_fullres"


def _options(root: Path, **changes: object) -> TrainOptions:
    values: dict = {
        "root": root,
        "epochs": 1,
        "iterations_per_epoch": 2,
        "workers": 0,
        "device": "cpu",
        "validate": False,
        "configuration": "3d_lowres",
        "width_divisor": 2,
    }
    return TrainOptions(**{**values, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a teacher of two stages, and a coarser configuration that plans one stage more."""
    path = tmp_path_factory.mktemp("root")
    folder = make_dataset(path)
    write_scans(path)
    plan = json.loads((folder / "plans.json").read_text())
    fine = plan["configurations"]["3d_fullres"]
    fine["architectures"]["plain_unet"]["features_per_stage"] = [8, 16]
    shape = {
        **fine["architectures"]["plain_unet"],
        "patch_size": [12, 16, 12],
        "features_per_stage": [8, 16, 24],
        "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "blocks_encoder": [2, 2, 2],
        "blocks_decoder": [2, 2],
    }
    coarse = {**fine, "name": "3d_lowres", "spacing": [1.25, 1.25, 1.25], "architectures": {"plain_unet": shape}}
    plan["configurations"]["3d_lowres"] = coarse
    (folder / "plans.json").write_text(json.dumps(plan))
    lend_store(folder, "3d_fullres", "3d_lowres")
    train(
        900,
        "plain_unet",
        0,
        _options(path, configuration="3d_fullres", width_divisor=1, iterations_per_epoch=20, learning_rate=0.05),
    )
    return path


def test_a_student_of_its_own_spacing_patch_and_stages_starts_from_its_teacher(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outputs: dict[str, torch.Tensor] = {}
    original = DistillationTrainer.fit

    def looking(self: DistillationTrainer, *, resume: bool = False) -> None:
        with torch.no_grad():
            name = "encoder.stages.1.0.convs.1.conv.weight"
            outputs[self.folder.parent.name.rpartition("__")[2]] = self.network.net.state_dict()[name].clone()  # type: ignore[union-attr, operator]
        original(self, resume=resume)

    monkeypatch.setattr(DistillationTrainer, "fit", looking)
    with caplog.at_level(logging.INFO):
        folder = train_distill(900, TEACHER, "plain_unet", "none", 0, _options(root, init="teacher", tag="start"))
    train_distill(900, TEACHER, "plain_unet", "none", 0, _options(root, tag="start2", init="teacher", seed=0))
    assert (folder / FINAL).exists() and torch.equal(outputs["start"], outputs["start2"])
    recorded = read_json(folder.parent / RUN_FILE)
    assert recorded["network"]["patch_size"] == [12, 16, 12] and recorded["init"] == "teacher"
    missing = recorded["random_layers"]
    assert missing and all(".2." in name or "decoder" in name for name in missing)
    assert not any(name.startswith("encoder.stages.1.") for name in missing)
    assert f"stay random: {missing[0]}" in caplog.text
    lines = dry_run(900, "plain_unet", 0, _options(root, init="teacher", tag="dry"), TEACHER, "none")
    assert any(line.startswith("random") and missing[-1] in line for line in lines)
    assert train_distill(
        900, TEACHER, "plain_unet", "none", 0, _options(root, init="teacher", tag="start", resume=True)
    )


def test_a_method_that_needs_the_teacher_still_needs_its_plan(root: Path) -> None:
    with pytest.raises(RunError, match=r"its preprocessing \(spacing\)"):
        train_distill(900, TEACHER, "plain_unet", "kd", 0, _options(root, init="teacher", tag="x"))
    with pytest.raises(RunError, match=r"its preprocessing \(spacing\)"):
        train_distill(900, TEACHER, "plain_unet", "none", 0, _options(root, tag="x"))
    with pytest.raises(RunError, match="takes 1 channels in 2D and the teacher 1 in 3D"):
        train_distill(900, TEACHER, "plain_unet", "none", 0, _options(root, init="teacher", configuration="2d"))


def test_the_first_of_several_gives_the_weights(root: Path) -> None:
    path = root / "results" / NAME / TEACHER
    again = root / "again"
    shutil.copytree(path, again)
    content = load_checkpoint(again / "fold_0" / FINAL)
    weights = {name: value * 1.5 for name, value in content["network"].items()}  # equal ones would count twice
    save_checkpoint(again / "fold_0" / FINAL, {**content, "network": weights})
    options = _options(root, init="teacher", targets="cached", teachers=(str(again),), tag="several")
    folder = train_distill(900, str(path), "plain_unet", "kd", 0, options)
    assert (folder / FINAL).exists() and read_json(folder.parent / RUN_FILE)["random_layers"]


@pytest.mark.parametrize(
    ("key", "value", "what"), [("orientation", "SPL", "orientation None"), ("normalization", ["ct"], "normalization")]
)
def test_the_first_of_several_must_see_scans_turned_and_normalised_as_the_student_does(
    root: Path, tmp_path: Path, key: str, value: object, what: str
) -> None:
    place = Path(shutil.copytree(root, tmp_path / "root"))
    path = place / "preprocessed" / NAME / "plans.json"
    plan = read_json(path)
    (plan if key in plan else plan["configurations"]["3d_lowres"])[key] = value
    write_json(path, plan)
    run = place / "results" / NAME / TEACHER
    lists = {"teachers.json": [str(run)], "nested/teachers.json": [{"model": str(place / "teachers.json")}]}
    for name, members in lists.items():
        write_json(place / name, {"teachers": members})
        for method in ("none", "dml"):
            options = _options(place, init="teacher", targets="cached")
            with pytest.raises(RunError, match=what):
                dry_run(900, "plain_unet", 0, options, str(place / name), method)
    with pytest.raises(RunError, match=what):
        dry_run(900, "plain_unet", 0, _options(place, init="teacher", targets="cached", teachers=(str(run),)), TEACHER)
