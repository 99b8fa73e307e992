"""``--reorient``: a mixed data set gets one axis code, and every voxel stays where it is in the patient."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medkd.core.errors import DataError
from medkd.io.nifti import write_nifti
from tests.dataset_conversion.own_trees import convert as convert_radiographs
from tests.dataset_conversion.own_trees import make
from tests.dataset_conversion.task_trees import convert
from tests.dataset_conversion.trees import convert as convert_tree

AFFINES = {
    "RAS": np.diag([1.0, 2, 3, 1]),
    "LPS": np.diag([-1.0, -2, 3, 1]),
    "PIR": np.array([[0.0, 0, 3, 5], [-1, 0, 0, 6], [0, -2, 0, 7], [0, 0, 0, 1]]),
}


def mixed(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, affine in AFFINES.items():
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            voxels = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8 if part == "labelsTr" else np.int16)
            write_nifti(folder / part / f"{name}.nii.gz", voxels, affine)
    return folder


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_nibabels_canonical_form_is_the_same_before_and_after(tmp_path: Path, mode: str) -> None:
    source = mixed(tmp_path / "scans")
    result = convert(source, tmp_path / "root", labels=("a", "b"), reorient="ras", mode=mode)
    assert result.ok and result.conversion.lists["turned"] == ("LPS", "PIR")
    for name in AFFINES:
        for old, new in (("imagesTr/{}", "imagesTr/{}_0000"), ("labelsTr/{}", "labelsTr/{}")):
            before = nib.as_closest_canonical(nib.load(source / f"{old.format(name)}.nii.gz"))
            path = result.folder / f"{new.format(name)}.nii.gz"
            after = nib.load(path)
            assert nib.aff2axcodes(after.affine) == ("R", "A", "S")
            np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
            np.testing.assert_array_equal(np.asanyarray(after.dataobj), np.asanyarray(before.dataobj))
            assert path.is_symlink() == (mode == "link" and name == "RAS")


def test_another_code_converts_again_and_none_goes_back(tmp_path: Path) -> None:
    source, root = mixed(tmp_path / "scans"), tmp_path / "root"
    assert len(convert(source, root, reorient="RAS").conversion.converted) == 3
    assert len(convert(source, root, reorient="RAS").conversion.unchanged) == 3
    assert len(convert(source, root).conversion.converted) == 3
    image = nib.load(root / "raw/Dataset007_Test/imagesTr/LPS_0000.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")


def test_linked_data_sets_of_nnunet_are_turned_too(tmp_path: Path) -> None:
    from tests.dataset_conversion.trees import make_nnunet

    result = convert_tree("nnunet", make_nnunet(tmp_path), tmp_path / "root", reorient="LAS")
    assert result.ok
    for path in result.folder.glob("*/*.nii.gz"):
        assert nib.aff2axcodes(nib.load(path).affine) == ("L", "A", "S")


def test_codes_that_are_none_and_radiographs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Unknown axis code 'RAR'"):
        convert(mixed(tmp_path / "scans"), tmp_path / "root", reorient="RAR")
    from dataset_conversion import ConversionOptions, convert_dataset

    source = make("coco", tmp_path / "c")
    with pytest.raises(DataError, match="--reorient turns scans"):
        convert_dataset("coco", source, 3, root=tmp_path / "b", options=ConversionOptions(reorient="RAS"))
    assert convert_radiographs("coco", source, tmp_path / "b").ok
