"""A student of all cases, taught by the folds of its teacher: each case by those that have not seen it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.core.checkpoint import load_checkpoint, save_checkpoint
from medkd.core.errors import MethodError, RunError
from medkd.core.files import read_json, write_json
from medkd.core.run import FINAL
from medkd.inference.predictor import Predictor
from medkd.models.guard import Teacher
from medkd.preprocessing.store import CaseStore
from medkd.training.options import TrainOptions
from medkd.training.out_of_fold import groups_out_of_fold
from medkd.training.segmentation_task import dry_run, train, train_distill
from medkd.training.targets import TargetStore
from tests.training.builders import NAME, make_dataset, write_scans

CPU = torch.device("cpu")
OTHER = "plain_unet__3d_fullres__other"


def _options(root: Path, **changes: object) -> TrainOptions:
    values: dict = {"root": root, "epochs": 1, "iterations_per_epoch": 3, "workers": 0, "device": "cpu", **changes}
    return TrainOptions(**values)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of a teacher over six cases."""
    place = tmp_path_factory.mktemp("root")
    make_dataset(place)
    cases = [f"case_{index:02d}" for index in range(6)]
    splits = []
    for fold in range(3):
        held_out = cases[2 * fold : 2 * fold + 2]
        splits.append({"train": [case for case in cases if case not in held_out], "val": held_out})
    write_json(place / "preprocessed" / NAME / "splits_final.json", splits)
    for fold in range(3):
        train(900, "plain_unet", fold, _options(place, iterations_per_epoch=8, validate=False))
    return place


def _targets(root: Path) -> list[Path]:
    return sorted((root / "preprocessed" / NAME / "3d_fullres_targets").glob("*"))


def _stored(folder: Path, case: str) -> Tensor:
    target = TargetStore(folder).open(case)
    return target.coding.decode(torch.from_numpy(np.array(target.codes)))


def test_every_case_is_taught_by_the_fold_that_held_it_out(root: Path) -> None:
    options = _options(root, targets="out-of-fold", width_divisor=2)
    folder = train_distill(900, "plain_unet", "plain_unet", "kd", "all", options)
    assert (folder / FINAL).exists() and not (folder / "validation").exists()
    split = read_json(folder / "split.json")
    assert split["val"] == [] and split["train"] == split["teacher_train"] == [f"case_{i:02d}" for i in range(6)]
    assert read_json(folder.parent / "run.json")["targets"] == "out-of-fold"
    (targets,) = _targets(root)
    store = CaseStore(root / "preprocessed" / NAME / "3d_fullres")
    run = root / "results" / NAME / "plain_unet__3d_fullres"
    for index, case in enumerate(store.cases()):
        found = _stored(targets, case).softmax(0)
        image = store.open(case).image
        for fold in range(3):
            predictor = Predictor.from_run(run, [fold], CPU, mirror=False)
            same = torch.allclose(found, predictor.predict_preprocessed(image).softmax(0), atol=0.006)
            assert same == (fold == index // 2)


def test_targets_are_made_once_and_anew_where_another_fold_has_seen_a_case(root: Path) -> None:
    options = {"targets": "out-of-fold", "width_divisor": 2}
    train_distill(900, "plain_unet", "plain_unet", "kd", "all", _options(root, tag="one", **options))
    (targets,) = _targets(root)
    before = {path.name: path.stat().st_mtime_ns for path in targets.glob("*.npy")}
    train_distill(900, "plain_unet", "plain_unet", "dml", "all", _options(root, tag="two", **options))
    assert {path.name: path.stat().st_mtime_ns for path in targets.glob("*.npy")} == before
    path = root / "results" / NAME / "plain_unet__3d_fullres" / "fold_1" / "split.json"
    kept = read_json(path)
    try:
        write_json(path, {**kept, "train": [case for case in kept["train"] if case != "case_00"]})
        train_distill(900, "plain_unet", "plain_unet", "kd", "all", _options(root, tag="three", **options))
        after = {file.name: file.stat().st_mtime_ns for file in targets.glob("*.npy")}
        assert [name for name in after if after[name] != before[name]] == ["case_00.npy"]
        run = root / "results" / NAME / "plain_unet__3d_fullres"
        image = CaseStore(root / "preprocessed" / NAME / "3d_fullres").open("case_00").image
        both = [Predictor.from_run(run, [fold], CPU, mirror=False).predict_preprocessed(image) for fold in (0, 1)]
        mean = torch.stack([logits.softmax(0) for logits in both]).mean(0)
        # the mean is taken patch by patch, that of the test over whole cases
        assert (_stored(targets, "case_00").softmax(0) - mean).abs().mean() < 0.01
    finally:
        write_json(path, kept)


@pytest.fixture()
def other(root: Path) -> Iterator[None]:
    """A second teacher, whose weights are others."""
    results = root / "results" / NAME
    shutil.copytree(results / "plain_unet__3d_fullres", results / OTHER)
    for chosen in (results / OTHER).glob(f"fold_*/{FINAL}"):
        content = load_checkpoint(chosen)
        save_checkpoint(chosen, {**content, "network": {name: 0.9 * w for name, w in content["network"].items()}})
    yield
    shutil.rmtree(results / OTHER)


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize(
    ("method", "fold", "changes"),
    [
        ("kd", "all", {"targets": "out-of-fold"}),
        ("kd", "all", {"targets": "cached"}),
        ("at", 0, {}),
        ("kd", 0, {"targets": "cached", "teachers": (OTHER,)}),
    ],
)
def test_it_goes_on_with_the_teacher_with_which_it_began(
    root: Path, method: str, fold: int | str, changes: dict
) -> None:
    def distil(**more: object) -> Path:
        options = _options(root, tag="goes_on", width_divisor=2, epochs=2, validate=False, **changes, **more)
        return train_distill(900, "plain_unet", "plain_unet", method, fold, options)

    write_scans(root)
    folder = distil(overwrite=True)
    chosen = root / "results" / NAME / "plain_unet__3d_fullres" / "fold_0" / FINAL
    kept = chosen.read_bytes()
    try:
        content = load_checkpoint(chosen)
        weights = content["network"]
        (folder / FINAL).unlink()
        save_checkpoint(chosen, {**content, "network": {name: value * 1.5 for name, value in weights.items()}})
        with pytest.raises(
            RunError, match=r"fold_0/checkpoint_final\.pt holds other weights than when .* was made with it"
        ):
            distil(resume=True)
        assert not (folder / FINAL).exists()
        chosen.write_bytes(kept)
        distil(resume=True)
        assert (folder / FINAL).exists()
    finally:
        chosen.write_bytes(kept)
        shutil.rmtree(folder.parent)


def test_a_dry_run_says_who_teaches(root: Path) -> None:
    lines = dry_run(900, "plain_unet", "all", _options(root, targets="out-of-fold", tag="dry"), "plain_unet", "kd")
    assert any(
        "fold 0, 1, 2 (each case by those that have not seen it) of plain_unet teaches" in line for line in lines
    )
    assert any("its targets (plain predictions) are cached before" in line for line in lines)


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize(
    ("method", "fold", "changes", "message"),
    [
        ("kd", 0, {}, "--targets out-of-fold is for a student of fold all, found fold 0"),
        ("at", "all", {}, "needs more of the teacher than its outputs"),
        ("kd", "all", {"teachers": (OTHER,)}, "expected --targets cached, found out-of-fold"),
    ],
)
def test_what_cannot_be_is_one_sentence(root: Path, method: str, fold: int | str, changes: dict, message: str) -> None:
    options = _options(root, targets="out-of-fold", tag="no", **changes)
    with pytest.raises((RunError, MethodError), match=message) as caught:
        train_distill(900, "plain_unet", "plain_unet", method, fold, options)
    assert "\n" not in str(caught.value)


def test_cases_that_every_fold_has_seen_are_named(root: Path) -> None:
    run = root / "results" / NAME / "plain_unet__3d_fullres"
    hidden = (run / "fold_2").rename(run / "hidden")
    try:
        with pytest.raises(RunError, match=r"2 of 6 cases were seen by every finished fold \(0, 1\) .* case_04;"):
            train_distill(
                900, "plain_unet", "plain_unet", "kd", "all", _options(root, targets="out-of-fold", tag="lost")
            )
    finally:
        hidden.rename(run / "fold_2")


def test_a_teacher_of_all_cases_alone_cannot(root: Path) -> None:
    train(900, "plain_unet", "all", _options(root, tag="whole"))
    options = _options(root, targets="out-of-fold", tag="no")
    with pytest.raises(RunError, match="were not trained on all cases, found the finished folds all;"):
        train_distill(900, "plain_unet__3d_fullres__whole", "plain_unet", "kd", "all", options)


def test_groups_are_the_folds_that_have_not_seen_a_case() -> None:
    seen = [{"a", "b"}, {"b", "c"}, {"a", "c"}]
    teachers: list[Teacher] = [Teacher(None, str(place), frozenset(cases)) for place, cases in enumerate(seen)]  # type: ignore[arg-type]
    assert groups_out_of_fold(teachers, ["a", "b", "c", "d"]) == {
        (1,): ["a"],
        (2,): ["b"],
        (0,): ["c"],
        (0, 1, 2): ["d"],
    }
