"""What a recipe's trainings would refuse is known before its data are there, as far as networks and settings tell."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import medkd
from medkd.cli.reproduce import main
from medkd.core.dataset import DatasetDescription
from medkd.core.files import write_json
from medkd.reproduction.graph import LessonPlan
from tests.detection.builders import make_dataset as make_radiographs
from tests.optional import needs_ultralytics
from tests.reproduction.test_recipe import recipe
from tests.training.builders import NAME, make_dataset
from tests.training.test_teacher_scores import make_model

SETTINGS = {"epochs": 1, "iterations_per_epoch": 1, "workers": 0, "device": "cpu"}


def checked(
    root: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any], *words: str
) -> tuple[dict[str, str], list[str], str]:
    """Run → why it is impossible, the lines about what is open, and all that ``--check`` said."""
    path = root / "toy.json"
    path.write_text(json.dumps(content))
    main([str(path), "--root", str(root), "--check", *words])
    said = capsys.readouterr()
    lines = (said.out + said.err).splitlines()
    told = dict(line.removeprefix("impossible: ").split(": ", 1) for line in lines if line.startswith("impossible: "))
    return told, [line for line in lines if line.startswith("open: ")], said.out + said.err


def test_pairs_that_cannot_be_are_known_before_there_are_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = recipe(
        dataset={"number": 7, "name": "New", "format": "msd"},
        settings={**SETTINGS, "configuration": "3d_fullres"},
        folds=["0", "1"],
        teachers={
            "tiny": {"network": "unet_tiny"},
            "flat": {"network": "unet_tiny", "settings": {"configuration": "2d"}},
        },
        students={"small": {"network": "unet_tiny"}},
        methods={
            "alone": {"method": "none"},
            "kd": {"method": "kd"},
            "acf": {"method": "acf"},
            "start": {"method": "none", "settings": {"init": "teacher"}},
            "late": {"method": "kd", "settings": {"targets": "out-of-fold"}},
            "patch": {"method": "kd", "settings": {"patch_size": [16, 16]}},
        },
        without=[{"teacher": "flat", "method": method} for method in ("acf", "start", "late", "patch")],
    )
    told, (line,), said = checked(tmp_path, capsys, content)
    expected = {
        "small-acf-from-tiny": "no tap of this teacher has one",
        "small-start-from-tiny": "--init teacher needs two networks 'plain_unet'",
        "small-late-from-tiny": "is for a student of fold all, found fold 0",
        "small-patch-from-tiny": "--patch-size needs 3 values for 3d_fullres, found 2",
        "small-kd-from-flat": "sees 2D images and the student 'unet_tiny' 3D ones",
    }
    assert set(told) == {f"{name}-seed0-fold{fold}" for name in expected for fold in (0, 1)}, told
    assert all(part in told[f"{name}-seed0-fold1"] for name, part in expected.items())
    assert line.startswith("open: tiny-fold0, tiny-fold1, flat-fold0 and 5 more: the data are not prepared")
    assert "missing: " in said and not (tmp_path / "raw").exists()


def test_a_search_is_asked_what_it_would_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the bounds and with each choice, and with a teacher of its own, whatever the recipe's has become."""
    pytest.importorskip("optuna", reason="the extra tune is not installed")
    make_dataset(tmp_path)
    search = {"parameters": {"acf.weight": [0.1, 2.0, "log"]}, "trials": 2}
    taps = {"parameters": {"reviewkd.taps": ["all", "nonsense"]}, "trials": 2}
    content = recipe(
        dataset={"number": 900, "name": "Boxes", "format": "msd"},
        settings={**SETTINGS, "configuration": "3d_fullres"},
        folds=["0"],
        teachers={"large": {"network": "unet_tiny"}},
        students={"tiny": {"network": "unet_tiny"}},
        methods={"acf": {"method": "acf", "search": search}, "review": {"method": "reviewkd", "search": taps}},
    )
    told, still_open, _ = checked(tmp_path, capsys, content, "--only", "*search*")
    assert set(told) == {f"tiny-{method}-from-large-search-fold0" for method in ("acf", "review")}, told
    assert "no tap of this teacher has one" in told["tiny-acf-from-large-search-fold0"] and not still_open
    assert "nonsense" in told["tiny-review-from-large-search-fold0"]
    plan = LessonPlan(network="a", parameters={"m.z": 0}, searched={"m.x": (1, 8, "log"), "m.y": ("a", "b", "c")})
    tried = [variant.parameters for variant in plan.variants()]
    assert tried == [{"m.z": 0, "m.x": x, "m.y": y} for x, y in ((1, "a"), (8, "b"), (8, "c"))]
    given = {**content, "settings": {**content["settings"], "unlabelled_share": 0.5}}
    assert "'unlabelled_share' has nothing to draw from there" in checked(tmp_path, capsys, given)[2]


@pytest.mark.parametrize("prepared", [True, False])
def test_folds_that_the_data_do_not_have_are_known_before_a_teacher_is_trained(
    prepared: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of six cases a fold has four or five to search on, and the data set's own splits may be fewer than five."""
    pytest.importorskip("optuna", reason="the extra tune is not installed")
    folder = make_dataset(tmp_path)
    cases = [f"case_{number:02d}" for number in range(6)]
    raw = tmp_path / "raw" / NAME
    splits = [{"train": part, "val": sorted({*cases} - {*part})} for part in (cases[:2], cases[2:])]
    write_json(raw / "splits_final.json", splits)
    (folder / "splits_final.json").unlink(missing_ok=True)
    if not prepared:
        DatasetDescription.load(folder / "dataset.json").save(raw / "dataset.json")
        shutil.rmtree(folder)
    before = sorted(tmp_path.rglob("*"))
    search = {"parameters": {"kd.weight": [0.1, 2.0]}, "trials": 2, "folds": 3}
    content = recipe(
        dataset={"number": 900, "name": "Boxes", "format": "msd"},
        settings={**SETTINGS, "configuration": "3d_fullres"},
        folds=["0", "1", "2"],
        teachers={"large": {"network": "unet_tiny"}},
        students={"tiny": {"network": "unet_tiny"}},
        methods={"kd": {"method": "kd", "search": search}},
    )
    told = checked(tmp_path, capsys, content, "--only", "*search*")[0]
    name = "tiny-kd-from-large-search-fold"
    assert set(told) == {f"{name}0", f"{name}2"}, told
    assert "a search on 3 inner folds needs as many training cases or patients" in told[f"{name}0"]
    assert "and the fold has 2; search on fewer" in told[f"{name}0"]
    assert "Fold '2' does not exist; there are folds 0 to 1" in told[f"{name}2"]
    if not prepared:
        assert "does not exist" in checked(tmp_path, capsys, content, "--only", "large-fold2")[0]["large-fold2"]
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "toy.json"] == before


def test_a_model_from_elsewhere_is_compared_with_what_is_known_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("monai", reason="the model from elsewhere is MONAI's")
    model = make_model(tmp_path / "net", 1)
    content = recipe(
        dataset={"number": 900, "name": "Boxes", "format": "msd", "labels": ["small", "large"]},
        settings={**SETTINGS, "configuration": "3d_fullres"},
        folds=["0"],
        teachers={"given": {"model": "net"}, "absent": {"model": "nowhere"}},
        students={"tiny": {"network": "unet_tiny"}},
        methods={"kd": {"method": "kd"}, "flat": {"method": "kd", "settings": {"configuration": "2d"}}},
    )
    told, still_open, _ = checked(tmp_path, capsys, content)
    assert set(told) == {"tiny-flat-from-given-seed0-fold0"}, told
    assert [line.partition(": the ")[2][:20] for line in still_open] == ["data are not prepare", "teacher 'absent' is "]
    other = {**content, "dataset": {**content["dataset"], "labels": ["large", "small"]}}
    assert (
        "its labels are background 0, small 1" in checked(tmp_path, capsys, other)[0]["tiny-kd-from-given-seed0-fold0"]
    )
    prepared = make_dataset(tmp_path)
    described = DatasetDescription.load(prepared / "dataset.json")
    described.save(tmp_path / "raw" / NAME / "dataset.json")
    shutil.rmtree(prepared)
    stated = json.loads((model / "teacher.json").read_text())
    write_json(model / "teacher.json", {**stated, "channels": ["PET"]})
    named = {**content, "dataset": {"number": 900, "name": "Boxes", "format": "msd"}}
    assert "(PET) than the data set" in checked(tmp_path, capsys, named)[0]["tiny-kd-from-given-seed0-fold0"]


def test_formats_and_data_sets_of_the_other_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = recipe(dataset={"number": 7, "name": "New", "format": "fracatlas"})
    said = checked(tmp_path, capsys, content)[2]
    assert "'fracatlas' makes a data set for detection, but the networks are for segmentation" in said
    make_radiographs(tmp_path)
    content = recipe(dataset={"number": 502, "name": "Tiny", "format": "nnunet"}, folds=["0"])
    told = checked(tmp_path, capsys, content, "--only", "*alone*")[0]
    assert "Dataset502_Tiny is a data set for detection, but 'unet_tiny' is for segmentation" in str(told)


def test_detectors_are_asked_before_their_teacher_is_trained_and_before_there_are_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of networks and methods, what is known without data is what is known with them."""
    needs_ultralytics()
    content = recipe(
        dataset={"number": 502, "name": "Tiny", "format": "coco"},
        settings={**SETTINGS, "image_size": 64},
        folds=["0"],
        teachers={"dense": {"network": "retinanet_r18"}, "yolo": {"network": "yolov8n"}},
        students={"proposing": {"network": "faster_rcnn_r18"}, "same": {"network": "yolov8n"}},
        methods={"scores": {"method": "dkd"}, "start": {"method": "none", "settings": {"init": "teacher"}}},
    )
    before, (line,), _ = checked(tmp_path, capsys, content)
    assert "same-start-from-yolo-seed0-fold0" in line or "more" in line
    make_radiographs(tmp_path, images=6, size=64, negatives=1)
    medkd.plan_and_preprocess("Dataset502_Tiny", root=tmp_path, image_size=64)
    after, still_open, _ = checked(tmp_path, capsys, content)
    starts = {("proposing", "dense"), ("proposing", "yolo"), ("same", "dense")}
    expected = {f"{student}-start-from-{teacher}-seed0-fold0" for student, teacher in starts}
    expected |= {f"proposing-scores-from-{teacher}-seed0-fold0" for teacher in ("dense", "yolo")}
    assert set(after) >= expected and before == after and not still_open
    assert "scores anchors and the student scores proposals" in after["proposing-scores-from-yolo-seed0-fold0"]
    assert not (tmp_path / "results").exists()
