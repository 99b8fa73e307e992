"""A data set without labels gets some, or loses them: its folds follow, and what is refused names a way that works."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.files import read_json, write_json
from medkd.core.geometry import Geometry
from medkd.core.splits import Split, load_splits, save_splits
from medkd.io.volumes import write_volume
from medkd.preprocessing.prepare import plan_and_preprocess
from medkd.training.options import TrainOptions
from medkd.training.run import read_fold
from medkd.training.segmentation_task import SegmentationTask
from tests.training.builders import NAME, boxes_case
from tests.training.unlabelled_builders import without_labels

SCANS = [f"scan_{number:02d}" for number in range(7)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans without labels, planned and preprocessed."""
    root = tmp_path_factory.mktemp("free")
    without_labels(root, len(SCANS))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(made, tmp_path / "root")
    return tmp_path / "root"


def fold(root: Path, number: int | str = 0, *, write: bool = True) -> Split:
    """What a training of a fold begins with."""
    return read_fold(SegmentationTask(), 900, number, TrainOptions(root=root), write=write).split


def label(root: Path, *numbers: int) -> None:
    """Give scans labels, as a user would, and prepare the data set."""
    raw = root / "raw" / NAME
    for number in numbers:
        case = SCANS[number]
        (raw / "imagesTr").mkdir(exist_ok=True)
        (raw / "imagesUn" / f"{case}_0000.nii.gz").rename(raw / "imagesTr" / f"{case}_0000.nii.gz")
        labels = boxes_case(200 + number)[1].astype(np.uint8)
        write_volume(raw / "labelsTr" / f"{case}.nii.gz", labels, Geometry.from_spacing(labels.shape, (1.0, 1.0, 1.0)))
    prepare(root)


def prepare(root: Path) -> None:
    """``medkd_plan_and_preprocess``, for the number of labelled cases that there are."""
    raw = root / "raw" / NAME
    description = DatasetDescription.load(raw / "dataset.json")
    replace(description, num_training=len(list((raw / "labelsTr").glob("*")))).save(raw / "dataset.json")
    plan_and_preprocess(900, root=root, configurations=["3d_fullres"], workers=1)


def follow(message: str) -> None:
    """Delete the files that an error says to delete."""
    found = re.search(r"delete (\S+?)(?: and (\S+?))?, so that", message)
    assert found is not None
    for file in filter(None, found.groups()):
        Path(file).unlink()


def test_scans_that_get_labels_get_folds(root: Path) -> None:
    first = fold(root)
    assert first.train == () and sorted(first.val + first.unlabelled) == SCANS
    label(root, 0, 1, 2, 3, 4)
    file = root / "preprocessed" / NAME / "splits_final.json"
    before = file.read_bytes()
    assert set(fold(root, write=False).train) < set(SCANS[:5]) and file.read_bytes() == before
    splits = [fold(root, number) for number in range(5)]
    assert sorted(case for split in splits for case in split.val) == SCANS[:5]
    assert "without_labels" not in file.read_text() and load_splits(file)[0].val == splits[0].val
    label(root, 5)
    assert fold(root) == splits[0]  # folds of labelled cases stay as they are


def test_folds_stay_where_every_scan_gets_its_label(root: Path) -> None:
    splits = [fold(root, number) for number in range(5)]
    label(root, *range(len(SCANS)))
    labelled = [fold(root, number) for number in range(5)]
    assert [split.val for split in labelled] == [split.val for split in splits]
    assert [split.train for split in labelled] == [split.unlabelled for split in splits]
    assert "without_labels" not in (root / "preprocessed" / NAME / "splits_final.json").read_text()


@pytest.mark.parametrize("own", [False, True])
def test_folds_of_an_older_version_or_ones_own_are_not_thrown_away_and_the_way_out_works(root: Path, own: bool) -> None:
    fold(root)
    file = root / "preprocessed" / NAME / "splits_final.json"
    entries = [{key: entry[key] for key in ("train", "val")} for entry in read_json(file)]
    write_json(file, entries)
    if own:
        shutil.copy(file, root / "raw" / NAME)
    label(root, 0, 1, 2, 3, 4)
    kept = file.read_bytes()
    with pytest.raises(DataError, match=r"names 2 cases that have no labels \(scan_05, scan_06\), while 5") as caught:
        fold(root)
    assert file.read_bytes() == kept and "\n" not in str(caught.value)
    follow(str(caught.value))
    splits = [fold(root, number) for number in range(5)]
    assert sorted(case for split in splits for case in split.val) == SCANS[:5]


def test_a_file_of_ones_own_is_named_where_the_other_one_is_made_anew(root: Path) -> None:
    fold(root)
    file = root / "preprocessed" / NAME / "splits_final.json"
    shutil.copy(file, root / "raw" / NAME)
    label(root, 0, 1, 2, 3, 4)
    with pytest.raises(DataError, match=r"raw/.*/splits_final.json names 2 cases that have no labels") as caught:
        fold(root)
    follow(str(caught.value))
    assert not set(fold(root).train) & set(SCANS[5:])


def test_labels_that_are_taken_away_are_no_dead_end_either(root: Path) -> None:
    label(root, 0, 1, 2, 3, 4)
    labelled = fold(root)
    raw, file = root / "raw" / NAME, root / "preprocessed" / NAME / "splits_final.json"
    for folder in ("imagesTr", "labelsTr"):
        shutil.rmtree(raw / folder)
    prepare(root)
    with pytest.raises(DataError, match=r"names 5 cases that are not preprocessed .* has 2 without labels") as caught:
        fold(root)
    assert load_splits(file)[0] == labelled
    follow(str(caught.value))
    split = fold(root)
    assert sorted(split.val + split.unlabelled) == SCANS[5:]


def test_a_case_that_loses_its_label_is_named(root: Path) -> None:
    label(root, *range(len(SCANS)))
    fold(root)
    raw = root / "raw" / NAME
    (raw / "imagesTr" / f"{SCANS[3]}_0000.nii.gz").rename(raw / "imagesUn" / f"{SCANS[3]}_0000.nii.gz")
    (raw / "labelsTr" / f"{SCANS[3]}.nii.gz").unlink()
    prepare(root)
    with pytest.raises(DataError, match=r"names 1 cases that have no labels \(scan_03\)") as caught:
        fold(root)
    follow(str(caught.value))
    assert SCANS[3] not in {*fold(root).train, *fold(root).val}


def test_the_mark_is_nnunets_form_still(tmp_path: Path) -> None:
    splits = [Split(("a", "b"), ("c",))]
    save_splits(tmp_path / "splits_final.json", splits, labelled=False)
    assert load_splits(tmp_path / "splits_final.json") == splits
