"""Folders of cases: the file's schema, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.evaluation.segmentation.cases import evaluate_case
from medkd.evaluation.segmentation.folder import Summary, evaluate_folder
from medkd.evaluation.segmentation.folds import SegmentationFolds
from medkd.evaluation.segmentation.results import CaseScores, summary_text
from medkd.io.volumes import read_label, write_volume
from tests.evaluation.folders import LABELS, SPACING, reference, spoiled, write_map


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for i in range(4):
        write_map(tmp_path / "ref" / f"c{i}.nii.gz", reference(i))
        write_map(tmp_path / "pred" / f"c{i}.nii.gz", spoiled(reference(i), 1.0, i))
    return tmp_path / "pred", tmp_path / "ref"


def test_folder_scores_equal_case_scores_whatever_the_number_of_threads(folders: tuple[Path, Path]) -> None:
    summary = evaluate_folder(*folders, LABELS, workers=1)
    assert summary == evaluate_folder(*folders, LABELS, workers=3)
    assert [c.name for c in summary.cases] == [f"c{i}.nii.gz" for i in range(4)]
    expected = evaluate_case(spoiled(reference(2), 1.0, 2).astype(np.int16), reference(2), SPACING, LABELS)
    assert summary.cases[2].scores == expected


def test_file_has_nnunets_schema_and_means(folders: tuple[Path, Path], tmp_path: Path) -> None:
    summary = evaluate_folder(*folders, LABELS)
    summary.save(tmp_path / "summary.json")
    data = json.loads((tmp_path / "summary.json").read_text())
    assert {"foreground_mean", "mean", "metric_per_case"} <= set(data)
    assert set(data["mean"]) == {"1", "2"}
    entry = data["metric_per_case"][0]
    assert {"reference_file", "prediction_file", "metrics"} == set(entry)
    assert {"Dice", "IoU", "FN", "FP", "TN", "TP", "n_pred", "n_ref"} <= set(entry["metrics"]["1"])
    per_class = [np.mean([c["metrics"][k]["Dice"] for c in data["metric_per_case"]]) for k in ("1", "2")]
    assert [data["mean"][k]["Dice"] for k in ("1", "2")] == pytest.approx(per_class)
    assert data["foreground_mean"]["Dice"] == pytest.approx(np.mean(per_class)) == pytest.approx(summary.mean_dice)
    own = data["medkd"]
    assert own["structures"]["1"]["name"] == "liver"
    assert (
        own["structures"]["1"]["Dice"]["low"]
        <= own["structures"]["1"]["Dice"]["mean"]
        <= own["structures"]["1"]["Dice"]["high"]
    )
    assert "HD95" in own["definitions"]


def test_summary_survives_a_round_trip(folders: tuple[Path, Path], tmp_path: Path) -> None:
    summary = evaluate_folder(*folders, LABELS, nsd_tolerance_mm=1.5, definition="pooled")
    summary.save(tmp_path / "summary.json")
    assert Summary.load(tmp_path / "summary.json") == summary


def test_further_metrics_stand_in_file_table_and_folds_where_they_are_asked_for(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    plain, asked = evaluate_folder(*folders, LABELS), evaluate_folder(*folders, LABELS, further=("ASSD",))
    assert "ASSD" not in json.dumps(plain.to_json()) and "ASSD" not in summary_text(plain)
    asked.save(tmp_path / "summary.json")
    assert Summary.load(tmp_path / "summary.json") == asked
    data = json.loads((tmp_path / "summary.json").read_text())
    values = [case["metrics"]["1"]["ASSD"] for case in data["metric_per_case"]]
    assert (
        data["mean"]["1"]["ASSD"] == pytest.approx(np.mean(values)) == data["medkd"]["structures"]["1"]["ASSD"]["mean"]
    )
    assert "ASD" not in data["mean"]["1"] and "ASSD mm" in summary_text(asked) and "ASSD" in asked.definitions()
    scoring = SegmentationFolds()
    assert scoring.rules(plain) != scoring.rules(asked)
    assert scoring.means(asked)["foreground"]["ASSD"] == pytest.approx(asked.interval("ASSD").mean)
    data["medkd"]["further_metrics"] = ["ASD?"]
    (tmp_path / "damaged.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="further_metrics"):
        Summary.load(tmp_path / "damaged.json")


def test_regions_have_nnunets_keys(tmp_path: Path) -> None:
    labels = LabelSpec((("background", (0,)), ("whole", (1, 2)), ("core", (2,))), True, (1, 2))
    scores = evaluate_case(spoiled(reference(0), 1, 0), reference(0), SPACING, labels)
    summary = Summary(cases=(CaseScores("r/a.nii.gz", "p/a.nii.gz", scores),))
    assert list(summary.to_json()["mean"]) == ["(1, 2)", "2"]
    summary.save(tmp_path / "s.json")
    assert Summary.load(tmp_path / "s.json") == summary


def test_absent_structures_leave_the_mean_and_failures_stay(tmp_path: Path) -> None:
    """One absent, one missed, one perfect spleen: the mean is 1/2, not 1/3 and not 1."""
    truth = [np.where(reference(0) == 2, 0, reference(0)), reference(1), reference(2)]
    found = [truth[0], np.where(truth[1] == 2, 0, truth[1]), truth[2]]
    for i in range(3):
        write_map(tmp_path / "ref" / f"c{i}.nii.gz", truth[i].astype(np.int16))
        write_map(tmp_path / "pred" / f"c{i}.nii.gz", found[i].astype(np.int16))
    summary = evaluate_folder(tmp_path / "pred", tmp_path / "ref", LABELS)
    assert summary.counts(1) == {"scored": 1, "missed": 1, "invented": 0, "absent": 1}
    assert summary.interval("Dice", 1).mean == 0.5
    assert summary.interval("HD95", 1).mean == pytest.approx(np.linalg.norm(np.array(truth[0].shape) * SPACING) / 2)
    data = summary.to_json()
    assert data["metric_per_case"][0]["metrics"]["2"]["Dice"] is None
    assert data["mean"]["2"]["Dice"] == 0.5
    line = next(line for line in summary_text(summary).splitlines() if line.startswith("spleen"))
    assert line.split()[-3:] == ["1", "0", "1"]


def test_missing_predictions_are_named_or_counted(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    (predictions / "c1.nii.gz").unlink()
    (predictions / "c3.nii.gz").unlink()
    with pytest.raises(DataError, match=r"2 of 4 cases: c1, c3"):
        evaluate_folder(predictions, references, LABELS)
    summary = evaluate_folder(predictions, references, LABELS, allow_missing=True)
    assert summary.missing == ("c1", "c3")
    assert summary.counts()["missed"] == 4
    assert len(evaluate_folder(predictions, references, LABELS, cases=["c0", "c2"]).cases) == 2


def test_every_case_on_another_grid_or_unreadable_is_named(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    write_map(predictions / "c0.nii.gz", reference(0)[:-1])
    write_map(predictions / "c1.nii.gz", reference(1), (2.5, 1.0, 1.1))
    (predictions / "c2.nii.gz").write_bytes((predictions / "c2.nii.gz").read_bytes()[:200])
    with pytest.raises(DataError) as error:
        evaluate_folder(predictions, references, LABELS)
    text = str(error.value)
    assert "3 of 4 cases" in text
    assert "c0: prediction and reference differ in shape" in text
    assert "c1: prediction and reference differ in spacing" in text
    assert "c2.nii.gz" in text


def test_references_may_lie_anywhere_and_have_an_ending_of_their_own(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    predictions, references = folders
    expected = [case.scores for case in evaluate_folder(*folders, LABELS).cases]
    listed = {}
    for i, path in enumerate(sorted(references.iterdir())):
        listed[f"c{i}"] = tmp_path / f"patient{i}" / "drawn.nrrd"
        volume = read_label(path)
        write_volume(listed[f"c{i}"], volume.array, volume.geometry)
        write_volume(references / f"c{i}.nrrd", volume.array, volume.geometry)
        path.unlink()
    assert [case.scores for case in evaluate_folder(predictions, listed, LABELS).cases] == expected
    assert [case.scores for case in evaluate_folder(predictions, listed, LABELS, cases=["c2"]).cases] == expected[2:3]
    found = evaluate_folder(predictions, references, LABELS, file_ending=".nrrd", prediction_ending=".nii.gz")
    assert [case.scores for case in found.cases] == expected and found.cases[0].reference_file.endswith("c0.nrrd")
    with pytest.raises(DataError, match=r"no prediction \(CASE\.nrrd\) for 4 of 4"):
        evaluate_folder(predictions, references, LABELS, file_ending=".nrrd")
    with pytest.raises(DataError, match=r"No reference for 2 of 3 cases: c8 \(nowhere\), c9;"):
        evaluate_folder(predictions, {**listed, "c8": Path("nowhere")}, LABELS, cases=["c0", "c8", "c9"])


def moved(path: Path, voxels: float) -> None:
    """Shift the origin of a label map along x; its voxels stay as they are."""
    volume = read_label(path)
    matrix = volume.geometry.matrix
    matrix[0, 3] += voxels * volume.geometry.spacing[2]
    write_volume(path, volume.array, Geometry.from_affine(volume.array.shape, matrix))


def test_headers_that_differ_by_one_voxel_at_most_are_scored_with_a_warning(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    expected = evaluate_folder(*folders, LABELS)
    assert not caplog.text
    for case, voxels in (("c1", 0.3), ("c3", 1.0)):
        moved(folders[1] / f"{case}.nii.gz", voxels)
    assert evaluate_folder(*folders, LABELS) == expected
    assert (
        len(caplog.records) == 1
        and "2 of 4 cases" in caplog.text
        and "up to 1 mm" in caplog.text
        and "c1, c3" in caplog.text
    )
    moved(folders[1] / "c1.nii.gz", 0.8)
    with pytest.raises(
        DataError, match=r"1 of 4 .* c1: prediction and reference differ in origin .* up to 1\.1 mm apart"
    ):
        evaluate_folder(*folders, LABELS)


def test_empty_folders_and_unknown_cases_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found none"):
        evaluate_folder(folders[0], tmp_path / "nowhere", LABELS)
    with pytest.raises(DataError, match=r"no reference .* c9"):
        evaluate_folder(*folders, LABELS, cases=["c0", "c9"])
    with pytest.raises(DataError, match="empty"):
        evaluate_folder(*folders, LABELS, cases=[])


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"metric_per_case": [{"metrics": {"1": {}}}]}')
    with pytest.raises(DataError, match=r"summary\.json: .*expected a whole number"):
        Summary.load(tmp_path / "summary.json")
    (tmp_path / "summary.json").write_text('{"medkd": {"schema": 99}, "metric_per_case": []}')
    with pytest.raises(DataError, match="schema 99"):
        Summary.load(tmp_path / "summary.json")


@pytest.mark.real_data
def test_nnunets_own_summary_is_read(real_data: Path) -> None:
    path = real_data / "nnunet_model" / "model" / "fold_0" / "validation" / "summary.json"
    summary = Summary.load(path, LabelSpec.from_names(["Anterior", "Posterior"]))
    data = json.loads(path.read_text())
    assert summary.mean_dice == pytest.approx(data["foreground_mean"]["Dice"])
    assert [name for name, _ in summary.structures] == ["Anterior", "Posterior"]
    assert summary.to_json()["mean"]["1"]["FP"] == pytest.approx(data["mean"]["1"]["FP"])
    assert np.isnan(summary.interval("HD95").mean)
