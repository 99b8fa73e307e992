"""A data set of scans without labels alone: whatever comes after a training says agreement, and never a score."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

import medkd
from medkd.api.folds import train_folds
from medkd.core.errors import DataError, LeakError, RunError
from medkd.core.files import read_json, write_json
from medkd.core.paths import Root
from medkd.core.plan import Plan
from medkd.evaluation.cross_validation import cross_validate
from medkd.evaluation.report.write import make_report
from medkd.exporting.export import seen_cases
from medkd.inference.latency import measure_scans
from medkd.models.base import open_model
from medkd.models.like import plan_like
from medkd.preprocessing.prepare import plan_and_preprocess
from medkd.preprocessing.store import CaseStore
from medkd.reproduction.inner import make_inner_root
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import dry_run, train, train_distill
from tests.training.builders import NAME, make_dataset
from tests.training.unlabelled_builders import without_labels

STUDENT = "unet_tiny__3d_fullres__dml__from_plain_unet"


def _options(root: Path, **changes: Any) -> TrainOptions:
    common: dict[str, Any] = {"epochs": 1, "iterations_per_epoch": 1, "batch_size": 2, "workers": 0, "device": "cpu"}
    return TrainOptions(root=root, **{**common, **changes})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run of a network that was trained elsewhere, on labels."""
    root = tmp_path_factory.mktemp("elsewhere")
    make_dataset(root)
    return str(train(900, "plain_unet", 0, _options(root, validate=False)).parent)


@pytest.fixture(scope="module")
def taught(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with two folds of a student that was taught without labels; the second one's agreement is made up."""
    root = tmp_path_factory.mktemp("free")
    without_labels(root)
    folder = train_distill(900, teacher, "unet_tiny", "dml", 0, _options(root))
    write_json(folder.parent / "fold_1" / "agreement" / "agreement.json", {"agreement": 0.5, "cases": ["scan_01"]})
    return root


def test_all_folds_end_with_their_agreement(taught: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = taught / "results" / NAME / STUDENT
    first = read_json(run / "fold_0" / "agreement" / "agreement.json")["agreement"]
    caplog.set_level(logging.INFO)
    assert train_folds(lambda fold: [run / f"fold_{fold}"], 900, taught, validate=True) == [run]
    assert f"agreement with the teacher {(first + 0.5) / 2:.4f} on 2 held-out scans of fold 0, 1" in caplog.text
    assert not (run / "crossval").exists()


def test_the_report_shows_agreements_and_no_score(taught: Path, caplog: pytest.LogCaptureFixture) -> None:
    page = make_report(900, root=taught, output=taught / "page.html").read_text(encoding="utf-8")
    assert page.count("on 2 held-out scans of fold 0, 1, which says nothing about who is right") == 2
    assert "there are no labels to be judged by" in page and "no run has been scored yet" not in page
    assert "no scores yet" not in caplog.text


def test_what_needs_scores_says_that_there_can_be_none(taught: Path, teacher: str, tmp_path: Path) -> None:
    run = taught / "results" / NAME / STUDENT
    shutil.copytree(run, run.with_name(f"{STUDENT}__b"))
    both = [STUDENT, f"{STUDENT}__b"]
    for refused in (lambda: cross_validate(run), lambda: medkd.best_configuration(900, both, root=taught)):
        with pytest.raises(RunError, match="was trained without any label, so that its folds have an agreement"):
            refused()
    with pytest.raises(DataError, match="has scans without labels only, and a search compares scores"):
        make_inner_root(Root.resolve(taught), NAME, "0", tmp_path / "inner")
    shutil.copytree(teacher, taught / "results" / NAME / "plain_unet__3d_fullres")
    with pytest.raises(RunError, match=r"chosen here by Dice, which needs labels; .* plain_unet dml 0 --init teacher"):
        medkd.compress("plain_unet", 900, root=taught)


def test_an_export_knows_what_its_network_has_seen(taught: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = open_model(taught / "results" / NAME / STUDENT, "segmentation")
    seen = seen_cases(model, model.describe(), taught)
    split = read_json(taught / "results" / NAME / STUDENT / "fold_0" / "split.json")
    assert seen == sorted({*split["unlabelled"], *split["teacher_train"]}) and "cannot say" not in caplog.text


def test_runs_are_measured_on_a_scan_without_labels(taught: Path) -> None:
    found = measure_scans(taught / "results" / NAME, taught / "raw" / NAME, runs=[STUDENT], device="cpu", repetitions=1)
    assert found.case.startswith("scan_")


@pytest.mark.parametrize("share", [0, 0.3])
def test_a_share_that_asks_for_labels_is_refused(taught: Path, teacher: str, share: float) -> None:
    options = _options(taught, unlabelled_share=share, tag="share")
    with pytest.raises(
        RunError, match=f"unlabelled_share {share:g} asks for samples with labels, but .* has no labelled"
    ):
        train_distill(900, teacher, "unet_tiny", "dml", 0, options)


def test_a_rehearsal_does_not_say_what_nobody_knows(taught: Path, teacher: str, tmp_path: Path) -> None:
    silent = shutil.copytree(teacher, tmp_path / "silent")
    (silent / "fold_0" / "split.json").unlink()
    options = _options(taught, tag="silent")
    (line,) = (
        text for text in dry_run(900, "unet_tiny", 0, options, teacher=str(silent), method="dml") if "guard" in text
    )
    assert "nobody can say what it has seen" in line and "has seen 1" not in line


def test_equal_scans_on_both_sides_of_a_fold_are_refused(teacher: str, tmp_path: Path) -> None:
    without_labels(tmp_path)
    prepared, scans = tmp_path / "preprocessed" / NAME, tmp_path / "raw" / NAME / "imagesUn"
    cases = [f"scan_{index:02d}" for index in range(5)]
    shutil.copy(scans / "scan_00_0000.nii.gz", scans / "twin_0000.nii.gz")
    plan_and_preprocess(900, root=tmp_path, configurations=["3d_fullres"])
    write_json(prepared / "splits_final.json", [{"train": [*cases[1:], "twin"], "val": ["scan_00"]}])
    with pytest.raises(LeakError, match=r"twin without labels equals scan_00, .* voxel by voxel"):
        train_distill(900, teacher, "unet_tiny", "dml", 0, _options(tmp_path))


def test_scans_are_prepared_like_a_run_of_medkd(teacher: str, tmp_path: Path) -> None:
    without_labels(tmp_path)
    shutil.rmtree(tmp_path / "preprocessed")
    plan = plan_like(900, Path(teacher), root=tmp_path)
    theirs = Plan.load(Path(teacher) / "plans.json")
    assert plan.configurations == theirs.configurations and plan.transpose == theirs.transpose
    prepared = tmp_path / "preprocessed" / NAME
    assert len(CaseStore(prepared / "3d_fullres").unlabelled.cases()) == 5
    assert not (prepared / "2d").exists()  # of which the run says nothing
    assert train_distill(900, teacher, "unet_tiny", "dml", 0, _options(tmp_path)).is_dir()
