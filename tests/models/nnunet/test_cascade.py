"""nnU-Net's cascade as a teacher: its predictions are nnU-Net's own, and students of one network learn from them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.core.errors import RunError
from medkd.core.files import read_json, write_json
from medkd.core.geometry import Geometry
from medkd.io.volumes import read_image, write_volume
from medkd.models.base import open_model
from medkd.models.nnunet.checkpoint import CHECKPOINTS
from medkd.preprocessing.prepare import plan_and_preprocess
from medkd.training.merged import whole_cases
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import dry_run, train_distill
from medkd.training.targets import TargetStore
from tests.models.nnunet.builders import (
    ORACLE,
    configured,
    dataset_of,
    nnunet_probabilities,
    plans_of,
    write_model,
)
from tests.training.builders import NAME, boxes_case
from tests.training.unlabelled_builders import make_mixed

FULL, LOW, CASCADE = "3d_fullres", "3d_lowres", "3d_cascade_fullres"
SPACING = (1.25, 1.0, 0.8)  # of the scan; the stages are at 1 and 2 mm


def _plans() -> dict:
    full = configured((1.0, 1.0, 1.0), (16, 16, 16))
    low = configured((2.0, 2.0, 2.0), (8, 8, 8), next_stage=CASCADE)
    return plans_of({FULL: full, LOW: low, CASCADE: {"inherits_from": FULL, "previous_stage": LOW}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models of both stages, as nnU-Net calls them, of two folds each."""
    place = tmp_path_factory.mktemp("results")
    for seed, configuration in ((1, LOW), (5, CASCADE)):
        name = f"nnUNetTrainer__nnUNetPlans__{configuration}"
        write_model(place / name, _plans(), dataset_of(), configuration, folds=(0, 1), seed=seed, axes=(0, 1, 2))
    return place


@pytest.fixture()
def cascade(folder: Path, tmp_path: Path) -> Path:
    """The second stage's folder, in a copy that a test may change."""
    shutil.copytree(folder, tmp_path / "results")
    return tmp_path / "results" / f"nnUNetTrainer__nnUNetPlans__{CASCADE}"


def _scan(place: Path) -> Path:
    image, _ = boxes_case(3)
    image[0, :2] = 0  # something to crop
    file = place / "scan_0000.nii.gz"
    write_volume(file, image[0], Geometry.from_spacing(image.shape[1:], SPACING))
    return file


def _predicted(model: Path, file: Path, *, mirror: bool = False, folds: tuple[str, ...] = ("0",)) -> np.ndarray:
    image, geometry = read_image([file], "scan")
    return whole_cases(open_model(model), folds, torch.device("cpu"), mirror).probabilities("scan", image, geometry)


@pytest.mark.parametrize("mirror", [False, True])
def test_predictions_are_those_that_nnunet_made(cascade: Path, tmp_path: Path, mirror: bool) -> None:
    """The stored label maps are nnU-Net 2.8.1's, as the next test makes them."""
    found = _predicted(cascade, _scan(tmp_path), mirror=mirror, folds=("0", "1")).argmax(0)
    with np.load(ORACLE / "cascade.npz") as stored:
        expected = stored[f"mirrored_{mirror}"]
    assert [int((expected == value).sum()) > 20 for value in (0, 1, 2)] == [True] * 3
    assert (found == expected).mean() > 0.999


def test_probabilities_are_those_that_nnunet_makes_here(cascade: Path, tmp_path: Path) -> None:
    mirror = True
    file, first = _scan(tmp_path), open_model(cascade).first_stage.path
    nnunet_probabilities(first, [file], tmp_path / "first", mirror=mirror, folds=(0, 1))
    expected = nnunet_probabilities(
        cascade, [file], tmp_path / "second", previous=tmp_path / "first", mirror=mirror, folds=(0, 1)
    )
    found = _predicted(cascade, file, mirror=mirror, folds=("0", "1"))
    assert np.abs(found - expected).max() < 1e-3


def test_the_second_stage_looks_at_the_first_ones_prediction(cascade: Path, tmp_path: Path) -> None:
    """Another first stage changes the prediction, unless the weights of its maps are nothing."""
    file = _scan(tmp_path)
    checkpoint = cascade / "fold_0" / CHECKPOINTS["final"]
    for blind in (False, True):
        if blind:
            content = torch.load(checkpoint, weights_only=True)
            for name, value in content["network_weights"].items():
                if "stages.0" in name and value.ndim == 5 and value.shape[1] == 3:
                    value[:, 1:] = 0
            torch.save(content, checkpoint)
        seen = []
        for seed in (1, 2):
            write_model(open_model(cascade).first_stage.path, _plans(), dataset_of(), LOW, folds=(0,), seed=seed)
            seen.append(_predicted(cascade, file))
        assert np.array_equal(*seen) is blind


def test_the_first_stage_is_found_or_missed_in_a_sentence(cascade: Path) -> None:
    other = cascade.with_name(f"nnUNetTrainer_250epochs__nnUNetPlans__{LOW}")
    own = cascade.with_name(f"nnUNetTrainer__nnUNetPlans__{LOW}")
    shutil.copytree(own, other)
    assert open_model(cascade).first_stage.path == own
    shutil.copytree(own, cascade / "first")  # renamed, and inside
    assert open_model(cascade).first_stage.path == cascade / "first"
    shutil.rmtree(cascade / "first" / "fold_0")
    assert open_model(cascade).describe().folds == ("1",)
    shutil.rmtree(cascade / "first")
    shutil.move(own, other.with_name("coarse"))
    with pytest.raises(RunError, match=r"one model folder of its first stage .* found coarse, nnUNetTrainer_250"):
        open_model(cascade).describe()
    shutil.rmtree(other)
    assert open_model(cascade).describe().folds == ("0", "1")
    shutil.rmtree(other.with_name("coarse"))
    with pytest.raises(RunError, match="found none; put nnU-Net's folder of 3d_lowres there"):
        open_model(cascade).describe()


def test_a_renamed_cascade_is_recognised_by_its_weights(cascade: Path) -> None:
    cascade = cascade.rename(cascade.with_name("strong"))
    assert open_model(cascade).kind == "nnunet_cascade"
    first = cascade.with_name(f"nnUNetTrainer__nnUNetPlans__{LOW}")
    assert open_model(first.rename(first.with_name("coarse"))).kind == "nnunet"
    assert open_model(cascade).first_stage.path.name == "coarse"


def _options(root: Path, **changes: object) -> TrainOptions:
    values: dict = {"root": root, "epochs": 1, "iterations_per_epoch": 2, "workers": 0, "device": "cpu"}
    values |= {"targets": "cached", "validate": False}
    return TrainOptions(**{**values, **changes})


@pytest.fixture()
def root(tmp_path: Path, cascade: Path) -> Path:
    """A data set with the cases of the cascade's training, and splits."""
    folder = make_mixed(tmp_path)
    cases = [f"case_{index:02d}" for index in range(6)]
    splits = [{"train": cases[2:], "val": cases[:2]}, {"train": cases[:4], "val": cases[4:]}]
    for place in (folder, cascade, cascade.parent):
        write_json(place / "splits_final.json", splits)
    return tmp_path


def test_a_student_of_one_network_learns_what_the_cascade_says(root: Path, cascade: Path) -> None:
    made = train_distill(900, str(cascade), "unet_tiny", "kd", 0, _options(root))
    assert read_json(made.parent / "run.json")["teacher"] == str(cascade)
    assert set(read_json(made / "split.json")["teacher_train"]) == {f"case_{index:02d}" for index in range(2, 6)}
    (targets,) = (root / "preprocessed" / NAME / "3d_fullres_targets").iterdir()
    stored = TargetStore(targets).open("scan_00")
    found = stored.coding.decode(torch.from_numpy(np.array(stored.codes))).softmax(0).numpy()
    expected = _predicted(cascade, root / "raw" / NAME / "imagesUn" / "scan_00_0000.nii.gz")  # the same grid
    assert np.abs(found - expected).max() < 0.02
    assert any(
        "leak guard" in line for line in dry_run(900, "unet_tiny", 0, _options(root, tag="dry"), str(cascade), "kd")
    )


def test_a_stage_beside_its_cascade_is_doubted(root: Path, cascade: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = str(open_model(cascade).first_stage.path)
    for teacher, other in ((str(cascade), first), (first, str(cascade))):
        caplog.clear()
        dry_run(900, "unet_tiny", 0, _options(root, teachers=(other,)), teacher, "kd")
        assert f"{first} is the first stage of the cascade {cascade}, which asks it anyway" in caplog.text
        with pytest.raises(RunError, match="for the cascade alone leave it out"):
            dry_run(900, "unet_tiny", 0, _options(root, teachers=(other,), strict=True), teacher, "kd")


def test_students_take_over_full_or_low_resolution(root: Path, cascade: Path) -> None:
    shutil.rmtree(root / "preprocessed")
    options = _options(root, configuration=LOW, patch_size=(16, 16, 16))
    train_distill(900, str(cascade), "unet_tiny", "kd", 0, options)
    plan = read_json(root / "preprocessed" / NAME / "plans.json")["configurations"]
    assert plan[FULL]["spacing"] == [1, 1, 1] and plan[LOW]["spacing"] == [2, 2, 2] and set(plan) == {FULL, LOW}
    train_distill(900, str(cascade), "unet_tiny", "kd", 0, _options(root))


@pytest.mark.parametrize(
    ("method", "changes", "match"),
    [
        ("kd", {"targets": "live"}, "expected --targets cached, found live"),
        ("kd", {"init": "teacher"}, "no single network can be had"),
        ("at", {}, "needs more than a teacher's outputs"),
    ],
)
def test_what_a_cascade_cannot_do_is_refused(root: Path, cascade: Path, method: str, changes: dict, match: str) -> None:
    with pytest.raises(RunError, match=match):
        train_distill(900, str(cascade), "unet_tiny", method, 0, _options(root, **changes))
    with pytest.raises(RunError, match="is a cascade, of which no single network"):
        open_model(cascade).load()
    assert plan_and_preprocess(900, root=root, configurations=[FULL])  # what was there is there still
