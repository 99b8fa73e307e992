"""BraTS of 2021 and 2023: channel order, label 4, regions, time points of one patient."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.io.volumes import read_label, read_volume, write_volume
from tests.dataset_conversion.trees import convert, folds, make_brats, own, tree


@pytest.mark.parametrize("year", [2021, 2023])
def test_both_namings_give_the_same_channels_and_labels(tmp_path: Path, year: int) -> None:
    source = make_brats(tmp_path / "download/Training", cases=2, year=year)
    before = tree(source)
    result = convert("brats", tmp_path / "download", tmp_path / "root")
    assert result.ok and DatasetDescription.load(result.folder / "dataset.json").channel_names == (
        "t1c",
        "t1n",
        "t2f",
        "t2w",
    )
    case = "BraTS2021_00001" if year == 2021 else "BraTS-GLI-00000-001"
    for channel in range(4):  # the tree writes about 100, 200, 300, 400 into t1c, t1n, t2f, t2w
        image = read_volume(result.folder / f"imagesTr/{case}_{channel:04d}.nii.gz").array
        assert 100 * (channel + 1) <= image[2, 2, 2] < 100 * (channel + 1) + 9
    label = read_label(result.folder / f"labelsTr/{case}.nii.gz").array
    assert set(np.unique(label)) == {0, 1, 2, 3} and label[5, 5, 5] == 3 and label[3, 3, 3] == 2 and label[4, 4, 4] == 1
    assert tree(source) == before


def test_regions_overlap_as_defined_and_decode_to_the_labels_they_came_from(tmp_path: Path) -> None:
    result = convert("brats", make_brats(tmp_path / "download", cases=2), tmp_path / "root")
    labels = DatasetDescription.load(result.folder / "dataset.json").labels
    assert labels.regions and dict(labels.foreground) == {
        "whole_tumor": (1, 2, 3),
        "tumor_core": (1, 3),
        "enhancing_tumor": (3,),
    }
    original = torch.tensor(np.arange(4))[None, None]
    hot, _ = labels.encode(original)
    assert hot[0].tolist() == [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]
    assert torch.equal(labels.decode(hot[0] * 2 - 1).long(), original[0, 0])


def test_time_points_of_a_patient_are_known_as_such(tmp_path: Path) -> None:
    result = convert("brats", make_brats(tmp_path / "download", cases=4), tmp_path / "root")
    patients = DatasetDescription.load(result.folder / "dataset.json").patients
    assert patients == {f"BraTS-GLI-{p:05d}-{t:03d}": f"BraTS-GLI-{p:05d}" for p in range(2) for t in range(2)}


def test_the_strided_split_holds_out_every_fifth_case(tmp_path: Path) -> None:
    source = make_brats(tmp_path / "download", cases=11, year=2021)
    result = convert("brats", source, tmp_path / "root", settings={"split": "strided"})
    assert (
        folds(result.folder)[0]["val"] == ["BraTS2021_00004", "BraTS2021_00009"]
        and len(folds(result.folder)[0]["train"]) == 9
    )
    assert "ACF-BCKD" in own(result.folder)["split_source"]
    with pytest.raises(DataError, match="'strided'"):
        convert("brats", source, tmp_path / "other", settings={"split": "random"})


def test_validation_data_without_labels_become_test_cases(tmp_path: Path) -> None:
    make_brats(tmp_path / "download/Training", cases=2, year=2021)
    for old in list(make_brats(tmp_path / "v", cases=1, year=2021).rglob("*.nii.gz")):
        if "seg" not in old.name:
            new = tmp_path / "download/Validation/BraTS2021_00990" / old.name.replace("00000", "00990")
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(old, new)
    result = convert("brats", tmp_path / "download", tmp_path / "root")
    assert result.ok and len(list((result.folder / "imagesTs").iterdir())) == 4
    assert DatasetDescription.load(result.folder / "dataset.json").num_training == 2


def test_missing_sequences_and_labels_foreign_names_and_mixed_conventions_are_named(tmp_path: Path) -> None:
    source = make_brats(tmp_path / "download", cases=5, year=2021)
    (source / "BraTS2021_00000/BraTS2021_00000_t2.nii.gz").unlink()
    (source / "BraTS2021_00001/BraTS2021_00001_seg.nii.gz").unlink()
    (source / "BraTS2021_00002/W39_1998.09.19_Segm.nii").write_bytes(b"x")
    grid = Geometry.from_spacing((12, 14, 16), (1.0, 1.0, 1.0))
    mixed = np.zeros(grid.shape, np.uint8)
    mixed[5, 5, 5:9] = (1, 2, 3, 4)
    write_volume(source / "BraTS2021_00003/BraTS2021_00003_seg.nii.gz", mixed, grid)
    result = convert("brats", source, tmp_path / "root")
    assert result.conversion.left_out == ("BraTS2021_00000", "BraTS2021_00001", "BraTS2021_00003")
    texts = " ".join(f.text() for f in result.conversion.problems)
    assert "the file t2w" in texts and "the file seg" in texts and "found both values" in texts
    assert "W39_1998.09.19_Segm.nii" in result.conversion.warnings[0].text()
    assert result.conversion.converted == ("BraTS2021_00002", "BraTS2021_00004")


def test_a_folder_without_brats_cases_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="BraTS2021_00000_flair"):
        convert("brats", tmp_path / "empty", tmp_path / "root")
