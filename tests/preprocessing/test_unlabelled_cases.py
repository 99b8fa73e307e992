"""Scans without labels: how they are stored, described and verified."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import DataError
from medkd.core.files import read_json, write_json
from medkd.core.serial import load
from medkd.preprocessing.fingerprint import FINGERPRINT_FILE, Fingerprint
from medkd.preprocessing.prepare import plan_and_preprocess
from medkd.preprocessing.store import CaseStore
from tests.training.builders import NAME
from tests.training.unlabelled_builders import make_mixed, without_labels

SCANS = ("scan_00", "scan_01", "scan_02", "scan_03")


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    """A data set with labelled and unlabelled cases."""
    make_mixed(tmp_path)
    return tmp_path


def test_scans_without_labels_are_stored_apart_and_described_apart(root: Path) -> None:
    folder = root / "preprocessed" / NAME
    store = CaseStore(folder / "3d_fullres")
    assert store.cases() == [f"case_{i:02d}" for i in range(6)] and tuple(store.unlabelled.cases()) == SCANS
    case = store.open("scan_01")
    assert not case.labelled and not case.locations and set(np.unique(case.label)) <= {0, -1}
    assert case.image.shape[1:] == case.label.shape and not store.has_label("scan_01") and store.has_label("case_01")
    found = load(Fingerprint, folder / FINGERPRINT_FILE)
    assert found.cases == tuple(store.cases()) and [scan.facts.case for scan in found.unlabelled] == list(SCANS)


def test_a_plan_and_its_intensities_do_not_depend_on_scans_without_labels(root: Path) -> None:
    before = load(Fingerprint, root / "preprocessed" / NAME / FINGERPRINT_FILE)
    shutil.rmtree(root / "raw" / NAME / "imagesUn")
    plan_and_preprocess(900, root=root, configurations=["3d_fullres"])
    after = load(Fingerprint, root / "preprocessed" / NAME / FINGERPRINT_FILE)
    assert after.intensities == before.intensities and after.spacings == before.spacings and not after.unlabelled
    assert not CaseStore(root / "preprocessed" / NAME / "3d_fullres").unlabelled.cases()


def test_a_scan_that_got_its_label_moves_to_the_labelled_ones(root: Path) -> None:
    raw = root / "raw" / NAME
    shutil.move(raw / "imagesUn" / "scan_00_0000.nii.gz", raw / "imagesTr" / "scan_00_0000.nii.gz")
    shutil.copy(raw / "labelsTr" / "case_00.nii.gz", raw / "labelsTr" / "scan_00.nii.gz")
    data = read_json(raw / "dataset.json")
    write_json(raw / "dataset.json", {**data, "numTraining": 7})
    plan_and_preprocess(900, root=root, configurations=["3d_fullres"])
    store = CaseStore(root / "preprocessed" / NAME / "3d_fullres")
    assert "scan_00" in store.cases() and "scan_00" not in store.unlabelled.cases()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("broken", "scan_02"),
        ("channel", "scan_00_0001.nii.gz"),
        ("labelled", "only scans without labels in imagesUn"),
        ("names", "expected scans named CASE_0000.nii.gz"),
        ("label map", "expected a scan, found a label map, with nothing but the values 0, 1, 2"),
        ("folder", "found patient_7"),
        ("slice", "found slice.dcm"),
        ("file", "expected a folder of scans without labels, found a file"),
    ],
)
def test_verification_names_what_is_wrong_with_scans_without_labels(root: Path, change: str, found: str) -> None:
    raw = root / "raw" / NAME
    scans = raw / "imagesUn"
    (root / "preprocessed" / NAME / FINGERPRINT_FILE).unlink()
    if change == "broken":
        (scans / "scan_02_0000.nii.gz").write_bytes(b"nothing")
    elif change == "channel":
        shutil.copy(scans / "scan_00_0000.nii.gz", scans / "scan_00_0001.nii.gz")
    elif change == "labelled":
        shutil.copy(scans / "scan_00_0000.nii.gz", scans / "case_00_0000.nii.gz")
    elif change == "label map":
        shutil.copy(raw / "labelsTr" / "case_00.nii.gz", scans / "scan_04_0000.nii.gz")
    elif change == "folder":
        (scans / "patient_7").mkdir()
    elif change == "slice":
        (scans / "slice.dcm").write_bytes(b"DICOM")
    elif change == "file":
        shutil.rmtree(scans)
        scans.write_text("scans")
    else:
        for path in list(scans.iterdir()):
            path.rename(scans / path.name.replace("_0000", ""))
    with pytest.raises(DataError, match=found):
        plan_and_preprocess(900, root=root, configurations=["3d_fullres"])


def test_what_is_laid_beside_scans_later_is_found_as_long_as_it_is_there(root: Path) -> None:
    series = root / "raw" / NAME / "imagesUn" / "patient_7"
    series.mkdir()
    for _ in range(2):
        with pytest.raises(DataError, match="found patient_7"):
            plan_and_preprocess(900, root=root, configurations=["3d_fullres"])
    series.rmdir()
    assert plan_and_preprocess(900, root=root, configurations=["3d_fullres"])


def test_scans_without_labels_in_the_place_of_labelled_ones_are_refused(tmp_path: Path) -> None:
    make_mixed(tmp_path)
    shutil.rmtree(tmp_path / "raw" / NAME / "labelsTr")
    with pytest.raises(DataError, match="move scans that have no labels from imagesTr to imagesUn"):
        plan_and_preprocess(900, root=tmp_path, configurations=["3d_fullres"])


def test_a_plan_needs_labels_or_a_model(tmp_path: Path) -> None:
    folder = without_labels(tmp_path)
    (folder / "plans.json").unlink()
    with pytest.raises(DataError, match="--like MODEL"):
        plan_and_preprocess(900, root=tmp_path)
