"""Predictions that do not belong to the references are refused by ``medkd_evaluate``, instead of being scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medkd.cli.evaluate import main
from medkd.core.errors import DataError
from medkd.core.files import write_json
from medkd.core.geometry import Geometry
from medkd.evaluation.scoring import ScoringRequest
from medkd.evaluation.segmentation.scoring import score_label_maps
from medkd.io.volumes import write_volume

LABELS = {"background": 0, "liver": 1, "spleen": 2}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three perfect predictions, in folders that share no parent."""
    predictions, references = tmp_path / "a" / "predictions", tmp_path / "b" / "labelsTs"
    for number in range(3):
        array = np.random.default_rng(number).integers(0, 3, (4, 5, 6)).astype(np.int16)
        for folder in (predictions, references):
            write_volume(folder / f"c{number}.nii.gz", array, Geometry.from_spacing((4, 5, 6), (1, 1, 1)))
    return predictions, references


def describe(file: Path, labels: dict[str, Any], **more: Any) -> Path:
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz", **more}
    write_json(file, content)
    return file


@pytest.mark.parametrize(
    ("labels", "more", "said"),
    [
        ({"background": 0, "spleen": 1, "liver": 2}, {}, "'spleen' is 1 in {ours} and 2 in {theirs}"),
        ({"background": 0, "liver": 1, "pancreas": 2}, {}, "'pancreas' is 2 in {ours} and nothing in {theirs}"),
        ({**LABELS, "kidney": 3}, {}, "'kidney' is 3 in {ours} and nothing in {theirs}"),
        ({"background": 0, "liver": 1}, {}, "'spleen' is nothing in {ours} and 2 in {theirs}"),
        ({**LABELS, "ignore": 3}, {}, "'ignore' is 3 in {ours} and nothing in {theirs}"),
        (
            {"background": 0, "liver": [1, 2], "spleen": 2},
            {"regions_class_order": [1, 2]},
            "'liver' is 1 or 2 in {ours} and 1 in {theirs}",
        ),
    ],
)
def test_labels_that_mean_something_else_are_refused(
    folders: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    labels: dict[str, Any],
    more: dict[str, Any],
    said: str,
) -> None:
    predictions, references = folders
    ours, theirs = describe(predictions / "dataset.json", labels, **more), references.parent / "dataset.json"
    describe(theirs, LABELS)
    assert main([str(predictions), str(references)]) == 1
    text = capsys.readouterr().err
    assert said.format(ours=ours, theirs=theirs) in text and "--dataset-json" in text
    assert not (predictions / "summary.json").exists()
    given = ScoringRequest(predictions=predictions, references=references, dataset_json=theirs)
    assert score_label_maps(given).mean_dice == 1.0  # which the user says


def test_the_same_labels_in_other_words_are_the_same(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    predictions, references = folders
    describe(predictions / "dataset.json", {"Spleen": 2, "unlabelled": 0, "Liver": 1})
    describe(references / "dataset.json", LABELS)
    request = ScoringRequest(predictions=predictions, references=references)
    assert [name for name, _ in score_label_maps(request).structures] == ["Liver", "Spleen"]
    (references / "dataset.json").write_text("{")
    assert score_label_maps(request).mean_dice == 1.0
    assert "nobody compared what the labels of the references mean" in caplog.text


def test_a_folder_without_predictions_is_no_folder_of_misses(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = folders
    describe(references / "dataset.json", LABELS)

    def score(folder: Path) -> float:
        return score_label_maps(ScoringRequest(predictions=folder, references=references, allow_missing=True)).mean_dice

    with pytest.raises(DataError, match=r"typo does not exist; check the path"):
        score(tmp_path / "typo")
    assert main([str(tmp_path / "typo"), str(references), "--allow-missing"]) == 1
    assert not (tmp_path / "typo").exists()
    (predictions / "c1.nii.gz").unlink()
    assert 0.6 < score(predictions) < 0.7
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(DataError, match=r"has no prediction \(CASE\.nii\.gz\) for any of the 3 cases, c0 for example;"):
        score(other)
    for name in ("c0.nii", "c1.nii", "c2.nii", "d.nii"):
        (other / name).touch()
    with pytest.raises(DataError, match=r"it holds c0\.nii, c1\.nii, c2\.nii and more; check the folder"):
        score(other)
