"""Which largest components help out of fold: compared with scoring whole maps that scikit-image has cleaned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from skimage import measure

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import RunError
from medkd.core.labels import LabelSpec
from medkd.core.postprocessing import EVERYTHING, Postprocessing
from medkd.core.serial import load
from medkd.evaluation.cross_validation import cross_validate
from medkd.evaluation.segmentation.folder import evaluate_folder
from medkd.evaluation.segmentation.postprocessing import judged_cases, try_components
from medkd.evaluation.segmentation.results import Summary
from medkd.io.volumes import read_label
from tests.evaluation.folders import LABELS, make_dataset, make_run, write_map


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two folds whose livers have islands, and whose spleens are truly of two parts."""
    raw = make_dataset(tmp_path, 4)
    folder = make_run(tmp_path, "unet_tiny__3d_fullres", "unet_tiny", 1.0, {0: [0, 1], 1: [2, 3]})
    for index in range(4):
        truth = read_label(raw / "labelsTr" / f"case_{index:03d}.nii.gz").array.astype(np.int16)
        truth[0:2, 40:46, 34:39] = 2
        write_map(raw / "labelsTr" / f"case_{index:03d}.nii.gz", truth)
        found = truth.copy()
        found[10:12, 0:4, 0 : 4 + index] = 1
        write_map(folder / f"fold_{index // 2}" / "validation" / f"case_{index:03d}.nii.gz", found)
    for fold in (0, 1):
        scores(folder, raw, fold, LABELS)
    return folder


def scores(folder: Path, raw: Path, fold: int, labels: LabelSpec) -> None:
    validation = folder / f"fold_{fold}" / "validation"
    cases = [path.name.removesuffix(".nii.gz") for path in validation.glob("*.nii.gz")]
    summary = evaluate_folder(validation, raw / "labelsTr", labels, cases=cases, workers=1)
    summary.save(validation / "summary.json")


def cleaned(array: np.ndarray, value: int) -> np.ndarray:
    parts = measure.label(array == value, connectivity=3)
    sizes = np.bincount(parts.ravel())[1:]
    return np.where((array == value) & (parts != 1 + sizes.argmax()), 0, array)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_only_what_helps_over_all_folds_is_kept(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    merged: Summary = cross_validate(run, expected=2)
    found = load(Postprocessing, run / "crossval" / "postprocessing.json")
    assert [step.name for step in found.steps] == ["liver"] and found.folds == ("0", "1") and found.cases == 4
    trials = {trial.name: trial for trial in found.trials}
    assert list(trials) == [EVERYTHING, "liver", "spleen"]
    for value, name in ((1, "liver"), (2, "spleen")):
        expected = []
        for case in judged_cases(run, [0, 1]):
            truth, array = read_label(case.reference).array, read_label(case.prediction).array
            mine = truth == value
            expected.append((dice(array == value, mine), dice(cleaned(array, value) == value, mine)))
        before, after = np.mean(expected, axis=0)
        assert trials[name].before == pytest.approx(before, abs=1e-12)
        assert trials[name].after == pytest.approx(after, abs=1e-12)
    spleen_before, spleen_after = trials["spleen"].before, trials["spleen"].after
    liver_after = trials["liver"].after
    assert spleen_before is not None and spleen_after is not None and liver_after is not None
    assert spleen_after < spleen_before and not trials["spleen"].kept
    assert found.dice_before == pytest.approx(merged.mean_dice)
    assert found.dice_after == pytest.approx((liver_after + spleen_before) / 2)
    assert "only the largest component is kept of liver: mean Dice" in caplog.text


def test_a_step_that_costs_another_structure_is_not_kept(run: Path) -> None:
    found, _, _ = try_components(judged_cases(run, [0, 1]), LABELS)
    everything = found[0]
    assert everything.name == EVERYTHING and not everything.kept  # liver gains, the spleen's second part is lost


def test_regions_say_what_is_taken_from_the_core_alone(tmp_path: Path) -> None:
    labels = LabelSpec((("background", (0,)), ("whole", (1, 2)), ("core", (2,))), True, (1, 2))
    raw, folder = tmp_path / "raw", tmp_path / "run"
    DatasetDescription(channel_names=("MR",), labels=labels, num_training=2).save(folder / "dataset.json")
    for index in range(2):
        truth = np.zeros((8, 20, 20), np.int16)
        truth[1:7, 2:14, 2:14] = 1
        truth[2:6, 4:9, 4:9] = 2
        found = truth.copy()
        found[3:5, 11:13, 11:13] = 2  # an island of core inside of the tumour
        write_map(raw / "labelsTr" / f"c{index}.nii.gz", truth)
        write_map(folder / f"fold_{index}" / "validation" / f"c{index}.nii.gz", found)
        scores(folder, raw, index, labels)
    trials, before, after = try_components(judged_cases(folder, [0, 1]), labels)
    assert [(trial.name, trial.kept) for trial in trials] == [("whole", False), ("core", True)]
    assert trials[1].after == 1.0 and before < 1 and after == 1.0  # the whole tumour has no hole


def test_some_folds_have_a_folder_of_their_own_and_unknown_ones_are_refused(run: Path) -> None:
    cross_validate(run, only=["1"])
    assert load(Postprocessing, run / "crossval_1" / "postprocessing.json").folds == ("1",)
    assert json.loads((run / "crossval_1" / "summary.json").read_text())["medkd"]["folds"] == [1]
    with pytest.raises(RunError, match="fold 7 has no scores"):
        cross_validate(run, only=[7])


def test_scores_stay_where_references_are_gone(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "raw" / "Dataset004_Test" / "labelsTr" / "case_002.nii.gz").unlink()
    assert len(cross_validate(run, expected=2).cases) == 4
    assert "no post-processing was looked for" in caplog.text and "case_002.nii.gz is not there any more" in caplog.text
    assert not (run / "crossval" / "postprocessing.json").exists()
