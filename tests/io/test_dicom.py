"""DICOM series against SimpleITK's series reader, and every way in which a series can fail to be a scan."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from medkd.core.errors import DataError
from medkd.io.dicom import find_series, is_dicom
from medkd.io.dicom_header import Frame
from medkd.io.dicom_pixels import read_planes
from medkd.io.volumes import read_geometry, read_image, read_label, read_volume
from tests.io.dicom_series import AXIAL, SHAPE, on_slice, plane_dataset, pydicom, stored_values, write_series

from pydicom import uid as uids  # isort: skip

_C, _S = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))
ORIENTATIONS = {
    "axial": AXIAL,
    "prone": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "left-handed rows": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "oblique": (round(_C, 6), round(_S, 6), 0.0, round(-_S * _C, 6), round(_C * _C, 6), round(-_S, 6)),
}


def by_itk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels ``(z, y, x)`` and the affine to RAS+ mm."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return from_itk(reader.Execute())


def from_itk(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_voxels_and_grid_are_those_of_simpleitk(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    stored = stored_values()
    write_series(tmp_path, stored, orientation=orientation)
    volume = read_volume(tmp_path, None)
    array, affine = by_itk(tmp_path)
    assert np.array_equal(volume.array, array) and np.array_equal(volume.array, stored - 1024)
    np.testing.assert_allclose(volume.geometry.matrix, affine, atol=1e-5)
    np.testing.assert_allclose(volume.geometry.spacing, (2.5, 0.75, 0.5), atol=1e-5)
    assert read_geometry(tmp_path) == volume.geometry


@pytest.mark.parametrize(
    "syntax", [uids.ImplicitVRLittleEndian, uids.ExplicitVRBigEndian, uids.DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("signed", [False, True])
def test_every_encoding_gives_the_same_values(tmp_path: Path, syntax: str, signed: bool) -> None:
    stored = stored_values(low=-2000 if signed else 0, high=30000)
    write_series(tmp_path, stored, syntax=syntax, signed=signed)
    volume = read_volume(tmp_path, None)
    assert np.array_equal(volume.array, stored - 1024) and volume.array.dtype == np.int16
    assert np.array_equal(volume.array, by_itk(tmp_path)[0])


@pytest.mark.parametrize(
    ("slope", "intercept", "high", "dtype"),
    [(1, -1024, 4000, np.int16), (2, 0, 30000, np.int32), (1, -1024, 65000, np.int32), (0.5, -10.25, 4000, np.float32)],
)
def test_values_are_rescaled_and_whole_ones_stay_integers(
    tmp_path: Path, slope: float, intercept: float, high: int, dtype: type
) -> None:
    stored = stored_values(low=high - 3000, high=high)
    write_series(tmp_path, stored, slope=slope, intercept=intercept)
    volume = read_volume(tmp_path, None)
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array, stored * slope + intercept)
    np.testing.assert_array_equal(volume.array, by_itk(tmp_path)[0])


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    def change(z: int, dataset: Any) -> None:  # PET stores every slice with a scale of its own
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.125 * (z + 1), 0

    stored = stored_values()
    write_series(tmp_path, stored, change=change)
    np.testing.assert_allclose(read_volume(tmp_path).array, stored * 0.125 * np.arange(1, 7)[:, None, None])


def test_bits_above_the_stored_ones_are_ignored(tmp_path: Path) -> None:
    def change(z: int, dataset: Any) -> None:
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.PixelData = ((stored[z] & 0xFFF) | 0x5000).astype("<u2").tobytes()  # an overlay in the upper bits

    stored = stored_values(low=-2048, high=2047)
    write_series(tmp_path, stored, signed=True, intercept=0, change=change)
    assert np.array_equal(read_volume(tmp_path, None).array, stored)


@pytest.mark.parametrize("kind", ["RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "implicit"])
def test_compressed_images_equal_the_uncompressed_one(kind: str) -> None:
    """pydicom's own test images; JPEG-LS has no decoder in pydicom and goes to SimpleITK."""
    reference, other = (Path(pydicom.data.get_testdata_file(f"MR_small{name}.dcm")) for name in ("", f"_{kind}"))
    planes = [
        read_planes([Frame(path=path, index=0, size=(64, 64), position=(), orientation=(), spacing=())])
        for path in (reference, other)
    ]
    assert np.array_equal(*planes) and planes[0].max() == 2145


def test_jpeg_lossless_series_are_read_by_simpleitk(tmp_path: Path) -> None:
    """The usual compression of CT in archives; pydicom has no decoder of its own for it."""

    def change(z: int, dataset: Any) -> None:
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(tmp_path / "plane.dcm"))
        writer.SetUseCompression(True)
        writer.SetCompressor("JPEG")
        writer.Execute(sitk.GetImageFromArray(stored[z : z + 1].astype(np.uint16)))
        compressed = pydicom.dcmread(tmp_path / "plane.dcm")
        dataset.file_meta.TransferSyntaxUID = compressed.file_meta.TransferSyntaxUID
        dataset["PixelData"] = compressed["PixelData"]
        (tmp_path / "plane.dcm").unlink()

    stored = stored_values()
    path = write_series(tmp_path / "series", stored, change=change)[0]
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == uids.JPEGLosslessSV1
    volume = read_volume(tmp_path / "series", None)
    assert volume.array.dtype == np.int16 and np.array_equal(volume.array, stored - 1024)


def test_a_compression_without_decoder_is_named(tmp_path: Path) -> None:
    def change(_: int, dataset: Any) -> None:
        dataset.file_meta.TransferSyntaxUID = uids.HTJ2KLossless
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
        dataset["PixelData"].VR = "OB"

    write_series(tmp_path, change=change)
    with pytest.raises(DataError, match=r"High-Throughput JPEG 2000.*1\.2\.840\.10008\.1\.2\.4\.201.*pylibjpeg"):
        read_volume(tmp_path)


def test_files_without_preamble_are_read(tmp_path: Path) -> None:
    for path in write_series(tmp_path, syntax=uids.ImplicitVRLittleEndian):
        dataset = pydicom.dcmread(path)
        bare = path.with_name(f"bare_{path.name}")
        pydicom.dcmwrite(
            bare, pydicom.Dataset(dataset), implicit_vr=True, little_endian=True, enforce_file_format=False
        )
        path.unlink()
        assert bare.read_bytes()[:2] == b"\x08\x00" and is_dicom(bare)
    assert np.array_equal(read_volume(tmp_path, None).array, stored_values() - 1024)


def test_positions_may_be_rounded(tmp_path: Path) -> None:
    def change(_: int, dataset: Any) -> None:
        dataset.ImagePositionPatient = [round(float(v), 1) for v in dataset.ImagePositionPatient]

    write_series(tmp_path, stored_values((40, 4, 4)), step=0.625, change=change)
    assert read_geometry(tmp_path).spacing[0] == pytest.approx(0.625, abs=0.003)


def test_enhanced_multi_frame_images_are_read(tmp_path: Path) -> None:
    stored = stored_values()
    order = [3, 0, 5, 1, 4, 2]
    dataset = plane_dataset(stored[order])
    dataset.SOPClassUID, dataset.SeriesInstanceUID = uids.EnhancedCTImageStorage, "1.2.3.4"
    dataset.NumberOfFrames = len(stored)
    shared, dataset.PerFrameFunctionalGroupsSequence = pydicom.Dataset(), [pydicom.Dataset() for _ in stored]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence, shared.PixelValueTransformationSequence = (
        [pydicom.Dataset()] for _ in range(3)
    )
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.75, 0.5]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = list(AXIAL)
    transformation = shared.PixelValueTransformationSequence[0]
    transformation.RescaleSlope, transformation.RescaleIntercept = 1, -1000
    for group, z in zip(dataset.PerFrameFunctionalGroupsSequence, order, strict=True):
        group.PlanePositionSequence = [pydicom.Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = [-5, -6, 2.5 * z - 100]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    for path in (tmp_path, tmp_path / "enhanced.dcm"):
        volume = read_volume(path, None)
        assert np.array_equal(volume.array, stored - 1000)
        expected = [[-0.5, 0, 0, 5], [0, -0.75, 0, 6], [0, 0, 2.5, -100], [0, 0, 0, 1]]
        np.testing.assert_allclose(volume.geometry.matrix, expected)


def tilted(z: int, dataset: Any) -> None:
    dataset.ImagePositionPatient = [-31.5, 12.25 + z * 0.8, -700 + 2.5 * z]


def unevenly(z: int, dataset: Any) -> None:
    dataset.ImagePositionPatient = [-31.5, 12.25, -700 + 2.5 * z + 0.1 * z * z]


REFUSED = {
    "gantry tilt": (tilted, r"sheared \(gantry tilt\).*17\.7°.*slice\d+ is 4 mm off"),
    "uneven": (unevenly, r"evenly spaced, found distances from 2\.6 to 3\.4 mm"),
    "mixed orientation": (
        on_slice(2, ImageOrientationPatient=list(ORIENTATIONS["coronal"])),
        r"different orientations: 1 × 0",
    ),
    "mixed spacing": (
        on_slice(4, PixelSpacing=[0.8, 0.5]),
        r"different pixel spacings: 0\.75 × 0\.5 in slice\d+, 0\.8 × 0\.5 in slice53",
    ),
    "mixed size": (on_slice(1, Rows=4, Columns=20), r"different sizes \(rows × columns\): 8 × 10 .* 4 × 20 in slice64"),
    "no position": (on_slice(3, ImagePositionPatient=None), r"ImagePositionPatient is missing"),
    "no spacing": (on_slice(-1, PixelSpacing=None), r"PixelSpacing is missing"),
    "wrong orientation": (on_slice(-1, ImageOrientationPatient=[1, 0, 0, 0.5, 0.5, 0]), r"perpendicular unit vectors"),
    "two positions": (on_slice(2, ImagePositionPatient=[1, 2]), r"damaged DICOM file.*expected 3 numbers"),
    "colour": (on_slice(-1, PhotometricInterpretation="PALETTE COLOR"), r"colour image \(PALETTE COLOR\)"),
    "rgb": (on_slice(-1, PhotometricInterpretation="RGB", SamplesPerPixel=3), r"colour image \(RGB\)"),
    "localizer": (on_slice(-1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), r"localizer \(scout\)"),
    "segmentation": (on_slice(-1, Modality="SEG"), r"it is a segmentation, not a scan"),
    "no pixels": (on_slice(3, PixelData=None), r"slice89 has a header, but no pixel data"),
    "no image": (on_slice(-1, Rows=None, PixelData=None), r"it holds no image"),
    "table": (on_slice(0, ModalityLUTSequence=[]), r"ModalityLUTSequence"),
    "too few pixels": (on_slice(5, PixelData=bytes(60)), r"slice17 is truncated or damaged"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_regular_stack_is_refused_in_one_sentence(tmp_path: Path, change: Any, message: str) -> None:
    write_series(tmp_path / "series", change=change)
    with pytest.raises(DataError, match=message) as caught:
        read_volume(tmp_path / "series")
    assert "\n" not in str(caught.value) and str(tmp_path / "series") in str(caught.value)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_missing_slice_is_noticed_wherever_it_was(tmp_path: Path, number: int) -> None:
    write_series(tmp_path)[number].unlink()
    with pytest.raises(
        DataError, match=r"about 1 slices are missing: they lie 2\.5 mm apart, but slice\d+ and slice\d+ 5 mm"
    ):
        read_volume(tmp_path)


def test_a_copy_of_a_slice_is_refused(tmp_path: Path) -> None:
    shutil.copy(write_series(tmp_path)[2], tmp_path / "again.dcm")
    with pytest.raises(DataError, match=r"1 of 7 slices lie where another one lies \(first again.dcm and slice28\)"):
        read_volume(tmp_path)


def test_a_single_slice_is_refused(tmp_path: Path) -> None:
    path = write_series(tmp_path)[0]
    with pytest.raises(DataError, match="single slice"):
        read_volume(path)
    for other in tmp_path.iterdir():
        if other != path:
            other.unlink()
    with pytest.raises(DataError, match="single slice"):
        read_volume(tmp_path)


@pytest.mark.parametrize("damage", ["in the meta information", "early", "noise"])
def test_a_damaged_file_stops_its_own_series_only(tmp_path: Path, damage: str) -> None:
    """It may be the last slice, which nobody would miss."""
    bad = write_series(tmp_path / "a")[5]
    content = bad.read_bytes()
    early = content[: content.index(b"1.2.3")]
    bad.write_bytes(
        {"in the meta information": content[:200], "early": early, "noise": early + b"\xff\x00\x10" * 50}[damage]
    )
    write_series(tmp_path / "b")
    study = find_series(tmp_path)
    assert [series.name for series in study.scans] == ["a", "b"] and list(study.damaged) == [bad]
    with pytest.raises(DataError, match=f"{bad.name} is a damaged DICOM file"):
        read_image(study.scans[0].files, "a")
    with pytest.raises(DataError, match=f"{bad.name} is a damaged DICOM file"):
        read_volume(tmp_path / "a")
    assert read_image(study.scans[1].files, "b")[0].shape == (1, *SHAPE)


@pytest.mark.parametrize("tag", [b"\x28\x00\x10\x00US", b"\x20\x00\x37\x00DS"])
def test_a_slice_that_ends_within_its_header_is_not_silently_left_out(tmp_path: Path, tag: bytes) -> None:
    bad = write_series(tmp_path)[5]
    bad.write_bytes(bad.read_bytes().split(tag)[0])
    assert (
        len(find_series(tmp_path).scans) == 1
    )  # a prediction of the tree must report it, not pass it over as no image
    with pytest.raises(DataError, match=bad.name):
        read_volume(tmp_path)


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match=r"pip install 'medkd\[dicom\]'"):
        read_volume(tmp_path)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["odd_files/torchio_dicom", "abdomen_ct/example_ct_dicom"])
def test_real_series_are_read_as_by_simpleitk(real_data: Path, name: str) -> None:
    volume = read_volume(real_data / name, None)
    array, affine = by_itk(real_data / name)
    assert np.array_equal(volume.array, array)
    np.testing.assert_allclose(volume.geometry.matrix, affine, atol=1e-4)


@pytest.mark.real_data
def test_the_liver_of_the_real_ct_has_livers_hounsfield_units(real_data: Path) -> None:
    """The label map of the same scan runs from left to right where the series runs from right to left."""
    volume = read_volume(real_data / "abdomen_ct" / "example_ct_dicom")
    label = read_label(real_data / "abdomen_ct" / "example_seg_dicom.nii.gz")
    signs = np.sign(np.diag(label.geometry.matrix)[:3] * np.diag(volume.geometry.matrix)[:3])
    mask = np.flip(label.array, [2 - i for i in range(3) if signs[i] < 0]) == 5
    values = volume.array[mask]
    assert values.mean() == pytest.approx(89, abs=1) and values.std() == pytest.approx(22, abs=1)


@pytest.mark.parametrize("number", [-1, 2])
def test_a_rescale_slope_of_zero_is_not_set_which_is_said(
    tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    write_series(tmp_path / "zero", change=on_slice(number, RescaleSlope=0))
    write_series(tmp_path / "one", slope=1.0)
    expected = read_volume(tmp_path / "one").array
    assert not caplog.text
    np.testing.assert_array_equal(read_volume(tmp_path / "zero").array, expected)
    assert f"RescaleSlope is 0 in {1 if number > 0 else len(expected)} of {len(expected)} slices" in caplog.text


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ({"RescaleSlope": 0}, r"RescaleSlope is 2 in slice\w+, but 0 or missing in 1 of \d+ slices"),
        ({"RescaleSlope": None}, "RescaleSlope is 2 .* but 0 or missing in 1 of"),
        ({"RescaleIntercept": None}, "RescaleIntercept is -1024 .* but missing in 1 of"),
        ({"RescaleSlope": "nan"}, "RescaleSlope is nan"),
        ({"RescaleSlope": "inf"}, "RescaleSlope is inf"),
    ],
)
def test_slices_that_would_be_scaled_otherwise_than_the_rest_are_refused(
    tmp_path: Path, tags: dict[str, object], found: str
) -> None:
    write_series(tmp_path, slope=2.0, change=on_slice(2, **tags))
    with pytest.raises(DataError, match=found):
        read_volume(tmp_path)
