"""Reading and writing of volumes against SimpleITK and nibabel; damaged and odd files."""

from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medkd.core import files
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.io.volumes import (
    Volume,
    read_channels,
    read_geometry,
    read_image,
    read_label,
    read_volume,
    split_channels,
    stem,
    write_volume,
)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def oblique(handedness: float = 1.0) -> np.ndarray:
    """A rotated grid of 0.75 × 1.5 × 3 mm; ``handedness`` −1 mirrors the first axis."""
    a, b = 0.3, -0.7
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    rz = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rz @ rx @ np.diag([0.75 * handedness, 1.5, 3.0])
    affine[:3, 3] = [-71.25, 33.5, -1020.125]
    return affine.astype(np.float32).astype(np.float64)  # NIfTI-1 stores float32


def scan(shape: tuple[int, ...] = (4, 5, 6), dtype: type = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def save(path: Path, array_xyz: np.ndarray, affine: np.ndarray | None = None, **header: float) -> Path:
    """Write with nibabel alone."""
    image = nib.Nifti1Image(array_xyz, np.eye(4) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def by_itk(path: Path) -> tuple[np.ndarray, tuple[float, ...], np.ndarray]:
    """Array, spacing (z, y, x) and RAS affine as SimpleITK sees them."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), image.GetSpacing()[::-1], LPS_TO_RAS @ affine


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("handedness", [1.0, -1.0])
def test_an_oblique_grid_survives_a_round_trip_and_simpleitk_agrees(
    tmp_path: Path, ending: str, handedness: float
) -> None:
    geometry = Geometry.from_affine((4, 5, 6), oblique(handedness))
    path = tmp_path / f"scan{ending}"
    write_volume(path, scan(), geometry)
    again = read_volume(path, None)
    np.testing.assert_array_equal(again.array, scan())
    assert again.array.dtype == np.int16
    if ending.startswith(".nii"):
        assert again.geometry == geometry == read_geometry(path)
    assert not geometry.differences(again.geometry, tolerance=1e-5)
    array, spacing, affine = by_itk(path)
    np.testing.assert_array_equal(array, again.array)
    np.testing.assert_allclose(spacing, again.geometry.spacing, rtol=1e-5)
    np.testing.assert_allclose(affine, again.geometry.matrix, atol=1e-3)


def test_both_sform_and_qform_are_set_and_equal(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", scan(), Geometry.from_affine((4, 5, 6), oblique(-1)))
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.header["sform_code"] == 1 and image.header["qform_code"] == 1
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)


def test_a_sheared_affine_is_kept_exactly(tmp_path: Path) -> None:
    affine = oblique()
    affine[0, 1] += 0.25
    geometry = Geometry.from_affine((4, 5, 6), affine.astype(np.float32))
    write_volume(tmp_path / "a.nii.gz", scan(), geometry)
    assert read_geometry(tmp_path / "a.nii.gz") == geometry


@pytest.mark.parametrize("slope, inter", [(2.0, -1024.0), (0.0754, 3100.76)])
def test_scl_slope_is_applied_as_simpleitk_does(tmp_path: Path, slope: float, inter: float) -> None:
    image = nib.Nifti1Image(scan((6, 5, 4)), np.eye(4))
    image.header.set_slope_inter(slope, inter)
    path = tmp_path / "scaled.nii"
    image.header.set_data_shape((6, 5, 4))
    with path.open("wb") as stream:  # raw integers with a slope, as scanners write them
        image.header["vox_offset"] = 352
        image.header["magic"] = b"n+1"
        stream.write(image.header.binaryblock + b"\0\0\0\0" + scan((6, 5, 4)).tobytes(order="F"))
    array = read_volume(path).array
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, scan((6, 5, 4)).T * np.float32(slope) + np.float32(inter), rtol=1e-6)
    np.testing.assert_allclose(array, by_itk(path)[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [">i2", ">f4", "<f8", "|u1", ">u2", "<i4"])
def test_every_byte_order_reads_equal_and_native(tmp_path: Path, dtype: str) -> None:
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(np.dtype(dtype))
    nib.save(nib.Nifti1Image(scan((6, 5, 4)).astype(dtype), oblique(), header), tmp_path / "a.nii.gz")
    array = read_volume(tmp_path / "a.nii.gz", None).array
    assert array.dtype.isnative and array.flags.c_contiguous and array.flags.writeable
    np.testing.assert_array_equal(array, scan((6, 5, 4)).T)


def test_units_other_than_millimetres_are_converted_as_simpleitk_does(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", scan((6, 5, 4)), np.diag([1e-3, 2e-3, 3e-3, 1.0]), xyzt_units=1)
    np.testing.assert_allclose(read_geometry(path).spacing, (3.0, 2.0, 1.0), rtol=1e-5)
    np.testing.assert_allclose(by_itk(path)[1], (3.0, 2.0, 1.0), rtol=1e-5)


def test_nifti2_is_read(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(scan((6, 5, 4)), oblique()), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array, scan((6, 5, 4)).T)
    assert volume.geometry.affine == Geometry.from_affine((4, 5, 6), oblique()).affine


def test_a_trailing_axis_of_one_is_dropped_and_4d_is_refused_or_split(tmp_path: Path) -> None:
    one = save(tmp_path / "one.nii.gz", scan((6, 5, 4, 1)))
    assert read_volume(one).array.shape == (4, 5, 6) == read_geometry(one).shape
    four = save(tmp_path / "four.nii.gz", scan((6, 5, 4, 3)), oblique())
    for read in (read_volume, read_geometry):
        with pytest.raises(DataError, match=r"4D with 3 volumes.*split_channels"):
            read(four)
    channels = read_channels(four)
    paths = split_channels(four, tmp_path / "out", "case")
    assert [p.name for p in paths] == ["case_0000.nii.gz", "case_0001.nii.gz", "case_0002.nii.gz"]
    for i, path in enumerate(paths):
        np.testing.assert_array_equal(read_volume(path).array, scan((6, 5, 4, 3))[..., i].T)
        np.testing.assert_array_equal(channels[i].array, scan((6, 5, 4, 3))[..., i].T)
        assert read_geometry(path).affine == channels[i].geometry.affine


def damaged(folder: Path, kind: str) -> Path:
    good = save(folder / "good.nii.gz", scan((20, 20, 20)))
    content = gzip.decompress(good.read_bytes())
    path = folder / "bad.nii.gz"
    if kind == "truncated gzip":
        path.write_bytes(good.read_bytes()[:-1000])
    elif kind == "flipped bit":
        raw = bytearray(gzip.compress(content, 0))  # stored, not compressed: only the checksum can tell
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    elif kind == "voxels missing":
        path.write_bytes(gzip.compress(content[:-500]))
    elif kind == "short header":
        path.write_bytes(gzip.compress(content[:100]))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(gzip.compress(b"no image " * 100))
    elif kind == "header of a pair":
        path.write_bytes(gzip.compress(content[:344] + b"ni1\0" + content[348:352]))
    elif kind == "absurd size":
        path.write_bytes(gzip.compress(content[:42] + np.array([30000] * 3, "<i2").tobytes() + content[48:]))
    elif kind == "unknown data type":
        path.write_bytes(gzip.compress(content[:70] + np.array([999], "<i2").tobytes() + content[72:]))
    return path


KINDS = [
    "truncated gzip",
    "flipped bit",
    "voxels missing",
    "short header",
    "empty",
    "text",
    "header of a pair",
    "absurd size",
]


@pytest.mark.parametrize("kind", [*KINDS, "unknown data type", "missing"])
def test_a_damaged_file_gives_one_error_with_its_name(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=r"bad\.nii\.gz"):
        read_volume(damaged(tmp_path, kind))


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mgz", "a.dcm", "a.png", "a.nii"])
def test_garbage_of_any_format_gives_one_error_with_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"garbage " * 100)
    for read in (read_volume, read_geometry, read_label):
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)


def test_2d_colour_complex_and_flat_affines_are_refused(tmp_path: Path) -> None:
    colour = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    bad = {
        "expected a 3D image": save(tmp_path / "flat.nii.gz", scan((6, 5))),
        "one number per voxel": save(tmp_path / "colour.nii.gz", colour),
        "found the data type complex": save(tmp_path / "complex.nii.gz", scan((4, 4, 4)).astype(np.complex64)),
    }
    singular = nib.Nifti1Image(scan((4, 4, 4)), np.eye(4))
    singular.header["srow_z"] = 0
    singular.header["sform_code"] = 1
    content = bytearray(singular.to_bytes())
    content[312:328] = bytes(16)
    (tmp_path / "singular.nii").write_bytes(content)
    bad["no valid voxel size"] = tmp_path / "singular.nii"
    for text, path in bad.items():
        with pytest.raises(DataError, match=text):
            read_volume(path)


def test_read_image_stacks_channels_and_names_what_differs(tmp_path: Path) -> None:
    first = save(tmp_path / "c_0000.nii.gz", scan((6, 5, 4)), oblique())
    second = save(tmp_path / "c_0001.nii.gz", scan((6, 5, 4))[::-1].copy(), oblique())
    image, geometry = read_image([first, second], "c")
    assert image.shape == (2, 4, 5, 6) and image.dtype == np.float32 and geometry == read_geometry(first)
    np.testing.assert_array_equal(image[1], scan((6, 5, 4))[::-1].T)
    moved, spaced, flipped = oblique(), oblique(), oblique()
    moved[:3, 3] += 10
    spaced[:3, :3] *= 1.1
    flipped[:3, 0] *= -1
    cases = {"origin": moved, "spacing": spaced, "direction": flipped}
    for name, affine in cases.items():
        with pytest.raises(DataError, match=rf"case c: .*c_0001\.nii\.gz: expected the same {name}"):
            read_image([first, save(second, scan((6, 5, 4)), affine)], "c")
    with pytest.raises(DataError, match="expected the same shape as c_0000"):
        read_image([first, save(second, scan((6, 5, 5)), oblique())], "c")
    slight = oblique()
    slight[:3, 3] += 0.1
    read_image([first, save(second, scan((6, 5, 4)), slight)], "c")


def test_read_image_counts_nan_and_infinity(tmp_path: Path) -> None:
    array = scan((6, 5, 4), np.float32)
    array[0, 0, :3] = np.nan
    array[1, 0, 0] = np.inf
    with pytest.raises(DataError, match="3 NaN and 1 infinite of 120 voxels"):
        read_image([save(tmp_path / "a.nii.gz", array)], "a")


def test_labels_stored_as_whole_floats_are_accepted_others_refused(tmp_path: Path) -> None:
    label = (scan((6, 5, 4)) % 3).astype(np.float32)
    volume = read_label(save(tmp_path / "a.nii.gz", label + 1e-6))
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, label.T)
    label[2, 2, 2] = 0.5
    with pytest.raises(DataError, match=r"whole numbers, found 0\.5 \(1 such"):
        read_label(save(tmp_path / "b.nii.gz", label))
    label[2, 2, 2] = np.nan
    with pytest.raises(DataError, match="whole numbers, found nan"):
        read_label(save(tmp_path / "c.nii.gz", label))
    with pytest.raises(DataError, match="is this the image"):
        read_label(save(tmp_path / "d.nii.gz", np.full((3, 3, 3), 70000, np.int32)))


@pytest.mark.parametrize("error", [errno.EROFS, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("function", ["mkstemp", "replace", "write"])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, function: str
) -> None:
    geometry = Geometry.from_spacing((4, 5, 6), (1, 1, 1))
    path = tmp_path / "a.nii.gz"
    write_volume(path, scan(), geometry)

    def fail(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    if function == "mkstemp":
        monkeypatch.setattr(files.tempfile, "mkstemp", fail)
    elif function == "replace":
        monkeypatch.setattr(files.os, "replace", fail)
    else:
        monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(DataError, match=os.strerror(error)):
        write_volume(path, scan() + 1, geometry)
    monkeypatch.undo()
    np.testing.assert_array_equal(read_volume(path).array, scan())
    assert os.listdir(tmp_path) == ["a.nii.gz"]


def test_types_that_nifti_lacks_are_stored_as_the_nearest(tmp_path: Path) -> None:
    geometry = Geometry.from_spacing((1, 1, 3), (1, 1, 1))
    for given, stored in [(bool, np.uint8), (np.float16, np.float32), (np.int64, np.int16)]:
        array = np.array([[[0, 1, 0]]]).astype(given)
        write_volume(tmp_path / "a.nii.gz", array, geometry)
        assert read_volume(tmp_path / "a.nii.gz", None).array.dtype == stored
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array, array.astype(np.float32))
    with pytest.raises(DataError, match="expected an array of the geometry's shape"):
        write_volume(tmp_path / "a.nii.gz", np.zeros((2, 2, 2)), geometry)


def test_stem_keeps_other_dots() -> None:
    assert (stem(Path("x/a.b.nii.gz")), stem(Path("a.NII.GZ")), stem(Path("a.txt"))) == ("a.b", "a", "a.txt")


READABLE = {
    "monai/anatomical_label.nii.gz",
    "monai/reoriented_anat_moved_label.nii.gz",
    "monai/test_0000_ep2d_diff_tra_7.nii.gz",
    "monai/test_0000_t2_tse_tra_4.nii.gz",
    "nibabel/anatomical.nii",
    "nibabel/reoriented_anat_moved.nii",
    "nibabel/resampled_anat_moved.nii",
    "nibabel/someones_anatomy.nii.gz",
    "nibabel/someones_epi.nii.gz",
    "nibabel/standard.nii.gz",
}
REFUSED = {
    "nibabel/analyze.hdr": "unknown image format",
    "nibabel/nifti1.hdr": "unknown image format",
    "nibabel/nifti2.hdr": "unknown image format",
    "nibabel/tiny.mnc": "unknown image format",
    "nibabel/example4d.nii.gz": "4D with 2 volumes",
    "nibabel/example_nifti2.nii.gz": "4D with 2 volumes",
    "nibabel/functional.nii": "4D with 20 volumes",
    "nibabel/test.mgz": "4D with 2 volumes",
    "nibabel/row_major.dconn.nii": "expected a 3D image",
    "nibabel_invalid/invalid.nii": "not a NIfTI file",
    "nibabel_invalid/invalid.nii.gz": "not a NIfTI file",
    "nibabel_invalid/invalid.nii.bz2": "unknown image format",
    "nibabel_invalid/invalid.nii.zst": "unknown image format",
    **{f"torchio_dicom/IMG{i:04d}.dcm": "single slice" for i in range(1, 18)},
}


@pytest.mark.real_data
def test_every_odd_file_is_read_as_simpleitk_reads_it_or_gives_one_clear_error(real_data: Path) -> None:
    """Big-endian, oblique, left-handed, scaled and tiny files are read; 4D, headers, CIFTI, text and foreign formats
    refused.
    """
    folder = real_data / "odd_files"
    found = {str(p.relative_to(folder)) for p in folder.glob("*/*")}
    assert found == READABLE | set(REFUSED)
    for name in READABLE:
        volume = read_volume(folder / name)
        array, spacing, affine = by_itk(folder / name)
        np.testing.assert_allclose(np.nan_to_num(volume.array), array, rtol=1e-6)  # ITK turns NaN into 0 without a word
        np.testing.assert_allclose(volume.geometry.spacing, spacing, rtol=1e-5)
        np.testing.assert_allclose(volume.geometry.matrix, affine, atol=2e-3)
        assert read_geometry(folder / name) == volume.geometry
    for name, text in REFUSED.items():
        with pytest.raises(DataError, match=text) as caught:
            read_volume(folder / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.real_data
def test_real_images_with_two_grids_or_nan_are_refused_by_read_image(real_data: Path) -> None:
    pair = [real_data / "odd_files/monai" / f"test_0000_{n}.nii.gz" for n in ("t2_tse_tra_4", "ep2d_diff_tra_7")]
    with pytest.raises(DataError, match=r"case prostate: .*ep2d.*same shape and spacing as test_0000_t2"):
        read_image(pair, "prostate")
    with pytest.raises(DataError, match=r"\d+ NaN"):
        read_image([real_data / "odd_files/nibabel/resampled_anat_moved.nii"], "moved")


@pytest.mark.real_data
def test_real_scans_round_trip_with_their_exact_geometry(real_data: Path, tmp_path: Path) -> None:
    for path in sorted((real_data / "odd_files/monai").glob("*.nii.gz")):
        volume: Volume = read_volume(path, None)
        write_volume(tmp_path / "a.nii.gz", volume.array, volume.geometry)
        again = read_volume(tmp_path / "a.nii.gz", None)
        np.testing.assert_array_equal(again.array, volume.array)
        np.testing.assert_allclose(again.geometry.matrix, volume.geometry.matrix, rtol=1e-6, atol=1e-6)
