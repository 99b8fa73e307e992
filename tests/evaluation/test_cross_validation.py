"""Merging folds."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.core.checkpoint import save_checkpoint, weights_digest
from medkd.core.errors import DataError, RunError
from medkd.core.files import read_json
from medkd.evaluation.cross_validation import cross_validate
from medkd.evaluation.segmentation.results import Summary
from medkd.evaluation.segmentation.scored_from import with_sources
from tests.evaluation.folders import make_dataset, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_dataset(tmp_path, 4)
    return make_run(tmp_path, "res_unet__3d_fullres", "res_unet", 1.0, {0: [0, 2], 1: [1, 3]})


def test_every_case_is_there_once_with_the_mean_over_cases(run: Path) -> None:
    summary = cross_validate(run, expected=2)
    folds = [Summary.load(run / f"fold_{k}" / "validation" / "summary.json") for k in (0, 1)]
    assert [c.name for c in summary.cases] == sorted(c.name for f in folds for c in f.cases)
    assert summary.mean_dice == pytest.approx(np.concatenate([f.table("Dice") for f in folds]).mean(0).mean())
    assert summary.extra["missing_folds"] == []
    assert summary.extra["fold_means"]["1"]["foreground"]["Dice"] == pytest.approx(folds[1].mean_dice)
    assert Summary.load(run / "crossval" / "summary.json") == summary


def test_label_maps_of_all_folds_lie_together(run: Path) -> None:
    """Each by the fold that had not seen the case; those of folds that were made anew follow."""
    maps = {fold: run / f"fold_{fold}" / "validation" for fold in (0, 1)}
    names = {path.name for folder in maps.values() for path in folder.glob("case_*.nii.gz")}
    together = run / "crossval" / "predictions"
    cross_validate(run, expected=2)
    assert len(names) == 4 and {path.name for path in together.iterdir()} == names
    for case, fold in {"case_000": 0, "case_001": 1, "case_002": 0, "case_003": 1}.items():
        assert (together / f"{case}.nii.gz").read_bytes() == (maps[fold] / f"{case}.nii.gz").read_bytes()
    (together / "case_007.nii.gz").touch()
    again = maps[0] / "case_000.nii.gz"
    again.with_name("new").write_bytes((maps[1] / "case_001.nii.gz").read_bytes())
    again.with_name("new").replace(again)
    cross_validate(run, expected=2)
    assert {path.name for path in together.iterdir()} == names
    assert (together / "case_000.nii.gz").read_bytes() == again.read_bytes()


def test_missing_folds_are_told(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        summary = cross_validate(run)
    assert summary.extra["missing_folds"] == [2, 3, 4]
    assert "folds 2, 3, 4 are not there" in caplog.text


def test_a_case_in_two_folds_is_refused(run: Path) -> None:
    path = run / "fold_1" / "validation" / "summary.json"
    path.write_text((run / "fold_0" / "validation" / "summary.json").read_text())
    (run / "fold_1" / "split.json").unlink()
    with pytest.raises(DataError, match=r"case_000\.nii\.gz is a validation case of fold 0 and of fold 1"):
        cross_validate(run)
    assert not (run / "crossval").exists()


def test_a_fold_that_did_not_score_all_its_cases_is_refused(run: Path) -> None:
    (run / "fold_1" / "split.json").write_text(json.dumps({"train": [], "val": ["case_001", "case_003", "case_00"]}))
    with pytest.raises(DataError, match=r"validation cases case_00 have no score"):
        cross_validate(run)


def test_folds_with_different_tolerance_are_refused(run: Path) -> None:
    path = run / "fold_1" / "validation" / "summary.json"
    path.write_text(path.read_text().replace('"nsd_tolerance_mm": 2.0', '"nsd_tolerance_mm": 3.0'))
    with pytest.raises(DataError, match="other structures, classes or definitions"):
        cross_validate(run)


def test_a_folder_that_is_no_run_or_has_no_scores_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a medkd run"):
        cross_validate(tmp_path)
    for k in (0, 1):
        (run / f"fold_{k}" / "validation" / "summary.json").unlink()
    with pytest.raises(RunError, match="no fold_K"):
        cross_validate(run)


def test_the_choice_to_look_for_no_post_processing_lasts_until_it_is_asked_for(run: Path) -> None:
    """Of just these folds, whether they are all or were named."""
    files = [run / folder / "postprocessing.json" for folder in ("crossval", "crossval_0_1")]
    cross_validate(run, expected=2, postprocessing=None)
    cross_validate(run, only=[0, 1])
    cross_validate(run, only=[0])
    assert [file.exists() for file in files] == [True, True]
    cross_validate(run, only=[1, 0], postprocessing=False)
    for _ in range(2):
        cross_validate(run, expected=2, postprocessing=None)
        cross_validate(run, only=[0, 1], postprocessing=None)
        assert [file.exists() for file in files] == [False, False]
        assert (run / "crossval_0" / "postprocessing.json").exists()
    cross_validate(run, expected=2)
    assert [file.exists() for file in files] == [True, False]
    cross_validate(run, expected=2, postprocessing=None)
    assert files[0].exists() and "no_postprocessing" not in read_json(run / "crossval" / "summary.json")["medkd"]
    later = (run / "fold_1").rename(run / "later")
    cross_validate(run, expected=2, postprocessing=False)
    later.rename(run / "fold_1")
    cross_validate(run, expected=2, postprocessing=None)  # it was said of all folds, when there were fewer
    assert not files[0].exists()


def test_scores_of_other_files_are_refused_and_those_that_do_not_say_are_told(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cross_validate(run, expected=2)
    assert caplog.text.count("does not say what it was scored from") == 2
    caplog.clear()
    weights = {"layer": torch.ones(2)}
    for fold in (run / "fold_0", run / "fold_1"):
        save_checkpoint(fold / "checkpoint_final.pt", {"network": weights})
        file = fold / "validation" / "summary.json"
        with_sources(Summary.load(file), [weights_digest(weights)], {}).save(file)
    summary: Summary = cross_validate(run, expected=2)
    assert "does not say" not in caplog.text
    prediction, reference = (Path(getattr(summary.cases[0], f"{kind}_file")) for kind in ("prediction", "reference"))
    other = Path(summary.cases[2].prediction_file).read_bytes()
    for path in (prediction, reference):
        before = path.read_bytes()
        path.write_bytes(other)
        with pytest.raises(RunError, match=r"has changed since .*--continue"):
            cross_validate(run, expected=2)
        path.unlink()  # what is not there cannot contradict the scores
        assert cross_validate(run, expected=2).cases == summary.cases
        path.write_bytes(before)
    save_checkpoint(run / "fold_1" / "checkpoint_final.pt", {"network": {"layer": torch.zeros(2)}})
    with pytest.raises(RunError, match=r"fold_1/validation/summary\.json holds the scores of other weights"):
        cross_validate(run, expected=2)
