"""What a NIfTI header says twice or thrice: kept on the way round, named where it disagrees, refused where it is
nonsense.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.core.serial import from_data, to_data
from medkd.io.volumes import header_remarks, read_geometry, read_volume, write_volume

SHAPE = (5, 6, 7)


def rotation(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


def placed(degrees: float, shift: float, spacing: tuple[float, float, float] = (1.0, 1.5, 2.0)) -> np.ndarray:
    matrix = rotation(degrees) @ np.diag([*spacing, 1.0])
    matrix[:3, 3] = (shift, -2 * shift, 3.0)
    return matrix


def scan(path: Path, sform: np.ndarray | None, s_code: int, qform: np.ndarray | None, q_code: int) -> Path:
    image = nib.Nifti1Image(np.arange(210, dtype=np.int16).reshape(SHAPE), None)
    image.header.set_zooms((1.0, 1.5, 2.0))
    image.header.set_qform(qform, code=q_code)
    image.header.set_sform(sform, code=s_code)
    nib.save(image, path)
    return path


def itk_grid(path: Path) -> tuple[np.ndarray, ...]:
    image = sitk.ReadImage(str(path))
    return tuple(np.array(v) for v in (image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()))


FORMS = {
    "both alike": (placed(0, 5), 1, placed(0, 5), 1),
    "other codes": (placed(10, 5), 2, placed(10, 5), 1),
    "sform only": (placed(20, 5), 1, None, 0),
    "qform only": (None, 0, placed(30, 5), 2),
    "neither": (None, 0, None, 0),
    "40 mm apart": (placed(0, 5), 1, placed(0, 45), 1),
    "40 mm apart, other codes": (placed(0, 5), 4, placed(15, 45), 2),
    "flipped against each other": (placed(0, 5), 1, placed(180, 5), 1),
}


@pytest.mark.parametrize("name", FORMS)
def test_what_is_written_lies_where_the_scan_lies_for_every_reader(tmp_path: Path, name: str) -> None:
    source = scan(tmp_path / "scan.nii.gz", *FORMS[name])
    volume = read_volume(source, None)
    geometry = from_data(Geometry, to_data(volume.geometry), "stored")  # as a case record keeps it
    write_volume(tmp_path / "mask.nii.gz", (volume.array > 100).astype(np.uint8), geometry)
    for own, other in zip(itk_grid(source), itk_grid(tmp_path / "mask.nii.gz"), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-4)
    a, b = nib.load(source), nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-5)
    for key in ("sform_code", "qform_code"):
        assert int(a.header[key]) == int(b.header[key])
    np.testing.assert_allclose(a.header.get_qform(), b.header.get_qform(), atol=1e-5)


def test_forms_that_disagree_are_named_and_others_are_not(tmp_path: Path) -> None:
    for number, (name, forms) in enumerate(FORMS.items()):
        remarks = header_remarks(scan(tmp_path / f"{number}.nii.gz", *forms))
        assert bool(remarks) == (name in ("40 mm apart", "40 mm apart, other codes", "flipped against each other")), (
            name
        )
    apart = header_remarks(scan(tmp_path / "x.nii.gz", *FORMS["40 mm apart"]))
    assert "89.4 mm apart" in apart[0][1]


def edited(path: Path, forms: str = "both alike", **fields: float) -> Path:
    """A scan with header fields overwritten, which nibabel itself would not write."""
    source = scan(path, *FORMS[forms])
    image = nib.load(source)
    header = image.header.copy()
    header["vox_offset"] = 352
    for name, value in fields.items():
        if name.startswith("pixdim"):
            header["pixdim"][int(name[-1])] = value
        else:
            header[name] = value
    content = header.binaryblock + bytes(4) + np.asarray(image.dataobj).tobytes(order="F")
    path.with_suffix("").write_bytes(content) if path.suffix == ".gz" else path.write_bytes(content)
    return path.with_suffix("") if path.suffix == ".gz" else path


def test_a_quaternion_a_little_longer_than_one_is_a_half_turn(tmp_path: Path) -> None:
    path = edited(tmp_path / "q.nii", "qform only", quatern_b=0.0, quatern_c=0.0, quatern_d=1.000001)
    affine = read_geometry(path).matrix
    np.testing.assert_allclose(np.abs(np.diag(affine)), (1, 1.5, 2, 1), atol=1e-5)
    np.testing.assert_allclose(np.array(itk_grid(path)[3]).reshape(3, 3), np.diag((1, 1, 1)), atol=1e-3)
    np.testing.assert_allclose(np.sign(np.diag(affine)[:2]), (-1, -1))  # RAS+; ITK's LPS is its negative


def test_a_quaternion_that_is_no_rotation_is_refused_or_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"q\.nii has a damaged NIfTI header .*1\.5 long"):
        read_geometry(edited(tmp_path / "q.nii", "qform only", quatern_d=1.5, quatern_b=0.0, quatern_c=0.0))
    with_sform = edited(tmp_path / "s.nii", quatern_d=1.5, quatern_b=0.0, quatern_c=0.0)
    assert "more than 1" in header_remarks(with_sform)[0][1]


@pytest.mark.parametrize("value", [0.0, -1.5, np.inf, np.nan, 1e6])
def test_an_odd_pixdim_beside_a_sane_sform_is_named(tmp_path: Path, value: float) -> None:
    path = edited(tmp_path / "p.nii", "sform only", pixdim2=value)
    assert header_remarks(path)
    np.testing.assert_allclose(read_geometry(path).spacing, (2, 1.5, 1), atol=1e-5)
    with pytest.raises(DataError, match=r"p\.nii"):
        read_geometry(edited(tmp_path / "p.nii", "neither", pixdim2=value if value != 1e6 else 0.0))


def test_an_unknown_unit_is_named_and_read_as_millimetres(tmp_path: Path) -> None:
    path = edited(tmp_path / "u.nii", xyzt_units=111)
    assert "7, taken as mm" in header_remarks(path)[0][1]
    assert read_geometry(path).spacing == pytest.approx((2, 1.5, 1))
