"""ACDC's HDF5 files: volumes win over their slices, frames of a patient stay together, lists give the parts."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.io.volumes import read_label, read_volume
from tests.dataset_conversion.trees import convert, folds, make_acdc, tree


def test_frames_know_their_patient_and_the_lists_give_validation_and_test(tmp_path: Path) -> None:
    result = convert("acdc_h5", make_acdc(tmp_path / "ACDC"), tmp_path / "root")
    assert result.ok
    description = DatasetDescription.load(result.folder / "dataset.json")
    assert description.num_training == 8 and description.patients["patient003_frame12"] == "patient003"
    assert [name for name, _ in description.labels.foreground] == ["right_ventricle", "myocardium", "left_ventricle"]
    assert folds(result.folder)[0]["val"] == ["patient002_frame01", "patient002_frame12"]
    assert sorted(p.name for p in (result.folder / "labelsTs").iterdir()) == [
        "patient005_frame01.nii.gz",
        "patient005_frame12.nii.gz",
    ]


def test_slices_alone_give_what_the_volumes_give(tmp_path: Path) -> None:
    source = make_acdc(tmp_path / "ACDC")
    from_volumes = convert("acdc_h5", source, tmp_path / "a").folder
    for path in (source / "data").glob("*.h5"):
        path.unlink()
    from_slices = convert("acdc_h5", source, tmp_path / "b").folder
    for path in from_volumes.glob("*/*.nii.gz"):
        same = from_slices / path.relative_to(from_volumes)
        np.testing.assert_array_equal(read_volume(path).array, read_volume(same).array)
    assert read_label(from_slices / "labelsTr/patient001_frame12.nii.gz").array.shape == (12, 20, 20)


def test_the_layout_with_phases_in_the_file_names(tmp_path: Path) -> None:
    """Folders train, valid, test; slices ``case_001_sliceED_0.npz`` with the array ``img``, volumes
    ``case_002_volume_ED.npz``.
    """
    for part in ("train", "valid", "test"):
        (tmp_path / "ACDC" / part).mkdir(parents=True)
    for case, part in ((1, "train"), (2, "valid")):
        for z in range(3):
            for phase in ("ED", "ES"):
                path = tmp_path / f"ACDC/{part}/case_{case:03d}_slice{phase}_{z}.npz"
                np.savez(path, img=np.full((8, 8), z, np.float32), label=np.full((8, 8), z))
    np.savez(
        tmp_path / "ACDC/test/case_003_volume_ES.npz", img=np.ones((3, 8, 8), np.float32), label=np.ones((3, 8, 8))
    )
    result = convert("acdc_h5", tmp_path / "ACDC", tmp_path / "root")
    assert folds(result.folder) == [{"train": ["case_001_ED", "case_001_ES"], "val": ["case_002_ED", "case_002_ES"]}]
    assert [p.name for p in (result.folder / "imagesTs").iterdir()] == ["case_003_ES_0000.nii.gz"]
    assert DatasetDescription.load(result.folder / "dataset.json").patients["case_001_ES"] == "case_001"


def test_a_case_in_two_parts_belongs_to_the_one_that_training_must_not_see(tmp_path: Path) -> None:
    source = make_acdc(tmp_path / "ACDC", patients=3)
    (source / "test").mkdir()
    shutil.copy(source / "data/patient001_frame01.h5", source / "test/patient001_frame01.h5")
    result = convert("acdc_h5", source, tmp_path / "root")
    assert (result.folder / "imagesTs/patient001_frame01_0000.nii.gz").exists()
    assert not (result.folder / "imagesTr/patient001_frame01_0000.nii.gz").exists()
    assert any("also" in f.text() for f in result.conversion.warnings)


def test_damaged_files_and_slices_of_another_size_are_named(tmp_path: Path) -> None:
    source = make_acdc(tmp_path / "ACDC", patients=4)
    path = source / "data/patient001_frame01.h5"
    path.write_bytes(path.read_bytes()[:100])
    (source / "data/patient003_frame01.h5").unlink()
    with h5py.File(source / "data/slices/patient003_frame01_slice_4.h5", "w") as file:
        file["image"], file["label"] = np.zeros((5, 5), np.float32), np.zeros((5, 5))
    before = tree(source)
    result = convert("acdc_h5", source, tmp_path / "root")
    assert result.conversion.left_out == ("patient001_frame01", "patient003_frame01")
    assert (
        "truncated or damaged" in result.conversion.problems[0].text()
        and "slices of shape" in result.conversion.problems[1].text()
    )
    assert tree(source) == before


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match=r"\.npz or \.h5"):
        convert("acdc_h5", tmp_path / "x", tmp_path / "root")
