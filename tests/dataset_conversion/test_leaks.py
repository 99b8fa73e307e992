"""Splits that somebody gave, with a patient on both sides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from medkd.core.dataset import DatasetDescription
from tests.dataset_conversion.own_trees import KINDS, PARTS, convert, make, patients_table


@pytest.mark.parametrize("kind", KINDS)
def test_training_images_of_held_out_patients_are_taken_out_of_an_official_split(tmp_path: Path, kind: str) -> None:
    """x1 is of a validation patient, x2 of a test patient, x3 equals x0, whose patient has x7, which is a validation
    image.
    """
    source = make(kind, tmp_path / "own", PARTS)
    images = {p.stem: p for p in source.rglob("*.jpg")}
    shutil.copy(images["x0"], images["x3"])
    table = patients_table(tmp_path / "p.csv", {0: "C", 1: "A", 2: "B", 4: "D", 5: "D", 6: "A", 7: "C", 8: "B"})
    result = convert(kind, source, tmp_path / "root", patients=table)
    (fold,) = json.loads((result.folder / "splits_final.json").read_text())
    assert fold == {"train": ["x4", "x5"], "val": ["x6", "x7"]}
    assert result.conversion.lists["taken out of training with their patients"] == ("x0", "x1", "x2", "x3")
    assert any("4 images of 3 patients (A, B, C)" in note for note in result.conversion.notes)
    description = DatasetDescription.load(result.folder / "dataset.json")
    assert description.patients["x8"] == "B", "intervals of test scores are over patients"
    assert "without 4 training images of patients" in description.extra["medkd"]["split_source"]


def test_folds_beside_test_images_are_without_the_patients_of_these(tmp_path: Path) -> None:
    source = make("yolo", tmp_path / "own", {"train": range(8), "test": range(8, 9)})
    table = patients_table(tmp_path / "p.csv", {n: "AABBCCDDA"[n] for n in range(9)})
    result = convert("yolo", source, tmp_path / "root", patients=table)
    folds = json.loads((result.folder / "splits_final.json").read_text())
    assert len(folds) == 3 and sorted(c for fold in folds for c in fold["val"]) == [f"x{n}" for n in range(2, 8)]
    assert not {"x0", "x1"} & {c for fold in folds for c in fold["train"]}


def test_a_split_whose_training_patients_are_all_held_out_is_an_error(tmp_path: Path) -> None:
    table = patients_table(tmp_path / "p.csv", dict.fromkeys(range(9), "A"))
    result = convert("yolo", make("yolo", tmp_path / "own", PARTS), tmp_path / "root", patients=table)
    assert not result.ok and "divide the images anew" in result.conversion.problems[0].text()


def test_a_users_splits_file_with_a_patient_on_both_sides_is_an_error_and_stays(tmp_path: Path) -> None:
    source = make("yolo", tmp_path / "own")
    table = patients_table(tmp_path / "p.csv", {n: f"p{n // 2}" for n in range(9)})
    path = convert("yolo", source, tmp_path / "root", patients=table).folder / "splits_final.json"
    folds = [{"train": ["x0", "x1"], "val": ["x2", "x3"]}, {"train": ["x0", "x2", "x4"], "val": ["x1", "x5"]}]
    path.write_text(json.dumps(folds))
    result = convert("yolo", source, tmp_path / "root", patients=table)
    assert not result.ok and json.loads(path.read_text()) == folds
    (problem,) = result.conversion.problems
    assert "fold 1" in problem.text() and "2 images of 2 patients (p0, p2)" in problem.text()
