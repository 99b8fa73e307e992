"""What a training would refuse is said before a recipe begins, in the training's own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medkd.cli.reproduce import main
from medkd.core.dataset import DatasetDescription
from medkd.core.files import write_json
from medkd.core.teachers import Untrained
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import dry_run, train, train_distill
from tests.reproduction.test_recipe import recipe
from tests.training.builders import NAME, make_dataset
from tests.training.test_teacher_scores import make_model


def test_pairs_with_a_teacher_that_is_trained_first_are_asked_before_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = make_dataset(tmp_path)
    settings = {"epochs": 1, "iterations_per_epoch": 1, "workers": 0, "device": "cpu", "configuration": "3d_fullres"}
    content = recipe(
        dataset={"number": 900, "name": "Boxes", "format": "msd"},
        settings=settings,
        folds=["0"],
        teachers={
            "large": {"network": "plain_unet"},
            "middle": {"network": "unet_tiny", "taught_by": "large", "method": "kd"},
        },
        students={
            "tiny": {"network": "unet_tiny"},
            "small": {"network": "plain_unet", "settings": {"width_divisor": 2}},
        },
        methods={
            "kd": {"method": "kd"},
            "start": {"method": "none", "settings": {"init": "teacher"}},
            "mean": {"method": "ensemble", "settings": {"mirror_axes": []}},
        },
    )
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(content))
    assert main([str(path), "--root", str(tmp_path), "--check"]) == 1
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("impossible: ")]
    told = {line.split(": ")[1]: line for line in found}
    rows = [("tiny", "start", "large"), ("tiny", "start", "middle"), ("small", "start", "middle")]
    for student in ("tiny", "small"):
        rows += [(student, "mean", teacher) for teacher in ("large", "middle")]
    assert set(told) == {f"{student}-{way}-from-{teacher}-seed0-fold0" for student, way, teacher in rows}, found
    assert "--init teacher needs two networks 'plain_unet'" in told["tiny-start-from-middle-seed0-fold0"]
    assert "There is nothing to average" in told["tiny-mean-from-middle-seed0-fold0"]
    assert not (tmp_path / "results").exists() and prepared.exists()


def test_impossible_pairs_are_found_before_anything_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("monai", reason="the model from elsewhere is MONAI's")
    prepared = make_dataset(tmp_path)
    DatasetDescription.load(prepared / "dataset.json").save(tmp_path / "raw" / NAME / "dataset.json")
    model = make_model(tmp_path / "net", 1)
    path = tmp_path / "toy.json"
    settings = {"epochs": 1, "iterations_per_epoch": 1, "workers": 0, "device": "cpu", "configuration": "3d_fullres"}
    content = recipe(
        dataset={"number": 900, "name": "Boxes", "format": "msd"},
        settings=settings,
        folds=["0"],
        seeds=[0, 1],
        teachers={"given": {"model": "net"}},
        students={"tiny": {"network": "unet_tiny"}},
        methods={
            "alone": {"method": "none"},
            "kd": {"method": "kd"},
            "start": {"method": "none", "settings": {"init": "teacher"}},
            "flat": {"method": "kd", "settings": {"patch_size": [16, 16]}},
            "prompts": {"method": "maskd"},
        },
    )

    def said(*words: str, **changes: Any) -> list[str]:
        path.write_text(json.dumps({**content, **changes}))
        code = main([str(path), "--root", str(tmp_path), *words])
        out, err = capsys.readouterr()
        lines = [line for line in (out + err).splitlines() if "impossible: " in line or line.startswith("error: ")]
        assert code == int(bool(lines)), out + err
        return lines

    def names(lines: list[str]) -> list[str]:
        return [line.split(": ")[1] for line in lines]

    found = said("--check")
    rows = ("start", "flat", "prompts")
    assert names(found) == [f"tiny-{row}-from-given-seed0-fold0" for row in rows], found
    assert "--patch-size needs 3 values" in found[1]
    (refused,) = said()  # the start says the first, and nothing begins
    assert "tiny-start-from-given-seed0-fold0: " in refused and not (tmp_path / "results").exists()
    assert not said("--check", "--only", "tiny-kd*")

    stated = json.loads((model / "teacher.json").read_text())
    write_json(model / "teacher.json", {**stated, "labels": {"background": 0, "big": 1, "large": 2}})
    found = said("--check", "--only", "tiny-kd*")
    assert names(found) == ["tiny-kd-from-given-seed0-fold0"] and "its labels are background 0, big 1" in found[0]
    write_json(model / "teacher.json", {**stated, "train": [f"case_{number:02d}" for number in range(6)]})
    assert "was trained (fold" in said("--check", "--only", "tiny-kd*")[0]


def test_a_fold_whose_teacher_is_not_trained_yet_joins_the_run_of_those_that_are_done(tmp_path: Path) -> None:
    """A recipe that goes on after its first fold: run.json of the student names its teacher already."""
    make_dataset(tmp_path)
    short = {"root": tmp_path, "epochs": 1, "iterations_per_epoch": 1, "workers": 0, "device": "cpu", "validate": False}
    teacher, student = (TrainOptions(**short, tag=tag, width_divisor=2) for tag in ("long", "small"))
    taught = train(900, "plain_unet", 0, teacher)
    folder = train_distill(900, taught.parent.name, "plain_unet", "kd", 0, student)
    later = Untrained(network="plain_unet", options=teacher)
    lines = dry_run(900, "plain_unet", 1, student, later, "kd")
    assert f"{folder.parent.name}/fold_1 (new)" in lines[0], lines
