"""DICOM-SEG round trips through highdicom, dcmqi and dciodvfy, which know nothing of medkd."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")


from medkd.core.errors import DataError  # noqa: E402
from medkd.core.geometry import Geometry  # noqa: E402
from medkd.core.labels import LabelSpec  # noqa: E402
from medkd.io.orientation import axis_code, turn, turn_geometry  # noqa: E402
from medkd.io.volumes import read_geometry, read_label  # noqa: E402
from medkd.io.writing.dicom_seg import write_dicom_seg  # noqa: E402
from medkd.io.writing.maker import Maker  # noqa: E402
from medkd.io.writing.source import SourceSeries, read_source  # noqa: E402
from medkd.io.writing.structures import Structure, structures_of  # noqa: E402
from medkd.io.writing.terms import known_terms  # noqa: E402
from tests.io.dicom_series import SHAPE, on_slice, plane_dataset, stored_values, write_series  # noqa: E402
from tests.io.test_dicom import ORIENTATIONS  # noqa: E402

LABELS = LabelSpec.from_names(["liver", "kidney_left", "a thing", "liver_tumor"])
REGIONS = LabelSpec.from_json(
    {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [2, 3], "enhancing_tumor": 3}, [1, 2, 3], "here"
)
UID = "1.2.3.4.5"
WHOSE = {
    "PatientName": "Doe^Jane",
    "PatientID": "P7",
    "PatientBirthDate": "19700102",
    "PatientSex": "F",
    "StudyInstanceUID": "1.2.3.4",
    "StudyID": "S1",
    "StudyDate": "20260102",
    "StudyTime": "120000",
    "AccessionNumber": "A9",
    "FrameOfReferenceUID": "1.2.3.9",
    "InstitutionName": "Somewhere",
}


def series(folder: Path, change: Callable[[int, Any], None] | None = None, **more: Any) -> SourceSeries:
    """A series with a patient, read."""

    def fill(z: int, dataset: Any) -> None:
        for key, value in WHOSE.items():
            setattr(dataset, key, value)
        dataset.SliceThickness = 2.0
        if change is not None:
            change(z, dataset)

    write_series(folder, series=UID, change=fill, **more)
    return read_source([folder])


def label_map(labels: LabelSpec = LABELS, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    array = np.random.default_rng(1).integers(0, labels.values[-1] + 1, shape).astype(np.uint8)
    array[0] = 0
    return array


def structures(labels: LabelSpec = LABELS) -> tuple[Structure, ...]:
    return structures_of(labels, known_terms())


def by_highdicom(path: Path) -> tuple[dict[int, np.ndarray], Geometry]:
    """Segment → mask, and the grid, as highdicom's own volume of the file says."""
    read = highdicom.seg.segread(path)
    volume = read.get_volume(combine_segments=False, rescale_fractional=False)
    masks = {number: np.asarray(volume.array[..., place], bool) for place, number in enumerate(read.segment_numbers)}
    return masks, grid_of(volume)


def grid_of(volume: Any) -> Geometry:
    """The grid of highdicom's volume, whose affine maps (slice, row, column) to LPS mm."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    return Geometry.from_affine(volume.array.shape[:3], affine[:, [2, 1, 0, 3]])


def on_grid(array: np.ndarray, geometry: Geometry, target: Geometry) -> np.ndarray:
    code = axis_code(target)
    assert turn_geometry(geometry, code).differences(target) == []
    return turn(array, axis_code(geometry), code)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("orientation", list(ORIENTATIONS))
def test_array_and_geometry_come_back(kind: str, orientation: str, tmp_path: Path) -> None:
    """Oblique, sagittal and coronal stacks whose files lie in another order than the slices."""
    source = series(tmp_path / "s", orientation=ORIENTATIONS[orientation])
    array = label_map()
    write_dicom_seg(tmp_path / "out.dcm", array, source, structures(), kind=kind)
    masks, geometry = by_highdicom(tmp_path / "out.dcm")
    code = axis_code(source.geometry)
    full = turn_geometry(geometry, code)
    assert full.spacing == pytest.approx(source.geometry.spacing, abs=1e-4)
    # highdicom leaves out empty planes at the ends: the first plane of the label map is empty
    assert np.allclose(np.linalg.inv(source.geometry.matrix) @ full.matrix @ [0, 0, 0, 1], [0, 0, 1, 1], atol=1e-3)
    for number, mask in masks.items():
        if number:
            assert np.array_equal(turn(mask, axis_code(geometry), code), array[1:] == number)


def test_segments_say_name_colour_code_and_maker(tmp_path: Path) -> None:
    source = series(tmp_path / "s")
    maker = Maker("unet_tiny__3d_fullres__kd__from_a_teacher_with_a_name_that_is_far_too_long_for_dicom", "ab" * 32)
    write_dicom_seg(tmp_path / "out.dcm", label_map(), source, structures(), maker=maker)
    read = pydicom.dcmread(tmp_path / "out.dcm")
    for structure, segment in zip(structures(), read.SegmentSequence, strict=True):
        assert segment.SegmentLabel == structure.name and segment.SegmentAlgorithmType == "AUTOMATIC"
        colour = highdicom.color.CIELabColor(*_cielab(segment.RecommendedDisplayCIELabValue))
        assert np.abs(np.array(colour.to_rgb()) - structure.colour).max() <= 2
    codes = [segment.SegmentedPropertyTypeCodeSequence[0].CodeValue for segment in read.SegmentSequence]
    assert codes == ["10200004", "64033007", "261665006", "108369006"]
    kidney, tumour = (read.SegmentSequence[place] for place in (1, 3))
    side = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert (side.CodingSchemeDesignator, side.CodeMeaning) == ("SCT", "Left")
    assert tumour.AnatomicRegionSequence[0].CodeMeaning == "Liver"
    assert len(read.SegmentSequence[0].SegmentAlgorithmName) <= 64 and read.DeviceSerialNumber == "ab" * 16


def _cielab(stored: Any) -> list[float]:
    """DICOM PS3.3, C.10.7.1.1."""
    lightness, a, b = (float(value) for value in stored)
    return [lightness * 100 / 65535, a * 255 / 65535 - 128, b * 255 / 65535 - 128]


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_patient_study_and_images_are_the_sources(kind: str, tmp_path: Path) -> None:
    source = series(tmp_path / "s")
    write_dicom_seg(tmp_path / "out.dcm", label_map(), source, structures(), kind=kind)
    read = pydicom.dcmread(tmp_path / "out.dcm")
    for key, value in WHOSE.items():
        if key != "InstitutionName":
            assert str(read[key].value) == value, key
    assert read.SeriesInstanceUID != UID and read.SOPInstanceUID not in [h.SOPInstanceUID for h in source.headers]
    referenced = read.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == UID
    images = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert images == {header.SOPInstanceUID for header in source.headers}
    for frame in read.PerFrameFunctionalGroupsSequence:
        position = [float(value) for value in frame.PlanePositionSequence[0].ImagePositionPatient]
        image = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        header = next(header for header in source.headers if header.SOPInstanceUID == image)
        assert position == pytest.approx([float(value) for value in header.ImagePositionPatient])
    measures = read.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SpacingBetweenSlices) == 2.5 and float(measures.SliceThickness) == 2.0


def test_regions_overlap_in_binary_and_are_refused_in_labelmap(tmp_path: Path) -> None:
    source, array = series(tmp_path / "s"), label_map(REGIONS)
    write_dicom_seg(tmp_path / "out.dcm", array, source, structures(REGIONS))
    masks, _ = by_highdicom(tmp_path / "out.dcm")
    for number, mask in masks.items():
        found = on_grid_of_stack(mask)
        assert np.array_equal(found, array[1:] >= number)
    with pytest.raises(DataError, match="whole_tumor and tumor_core overlap; choose --seg-kind binary"):
        write_dicom_seg(tmp_path / "no.dcm", array, source, structures(REGIONS), kind="labelmap")
    assert not (tmp_path / "no.dcm").exists()


def on_grid_of_stack(mask: np.ndarray) -> np.ndarray:
    """highdicom orders axial slices from head to foot."""
    return mask[::-1]


def test_nothing_found_is_an_object_without_voxels(tmp_path: Path) -> None:
    source = series(tmp_path / "s")
    for kind in ("binary", "labelmap"):
        write_dicom_seg(tmp_path / "out.dcm", np.zeros(SHAPE, np.uint8), source, structures(), kind=kind)
        read = pydicom.dcmread(tmp_path / "out.dcm")
        assert not read.pixel_array.any() and len(read.SegmentSequence) in (4, 5)


def test_a_multi_frame_source_keeps_the_order_of_its_frames(tmp_path: Path) -> None:
    """An enhanced CT whose frames are stored from head to foot."""
    stored = stored_values()
    dataset = enhanced(stored)
    dataset.save_as(tmp_path / "multi", enforce_file_format=True)
    source = read_source([tmp_path / "multi"])
    assert [frame.index for frame in source.stack.frames] == list(range(len(stored)))[::-1]
    array = label_map()
    write_dicom_seg(tmp_path / "out.dcm", array, source, structures())
    read = pydicom.dcmread(tmp_path / "out.dcm")
    for frame, plane in zip(read.PerFrameFunctionalGroupsSequence, read.pixel_array, strict=True):
        z = round((float(frame.PlanePositionSequence[0].ImagePositionPatient[2]) + 700) / 2.5)
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert np.array_equal(plane.astype(bool), array[z] == number)
        image = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedFrameNumber == len(stored) - z


def enhanced(stored: np.ndarray) -> Any:
    """A multi-frame CT, the last slice first."""
    dataset = plane_dataset(stored[::-1])
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = UID, "1.2.3.9"
    dataset.NumberOfFrames, dataset.InstanceNumber = len(stored), 1
    shared, measures, orientation = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.75, 0.5], 2.5
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for z in reversed(range(len(stored))):
        group, position = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [-31.5, 12.25, -700 + 2.5 * z]
        group.PlanePositionSequence = [position]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return dataset


def test_uids_that_anonymisation_emptied_are_made_from_the_headers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = on_slice(-1, StudyInstanceUID="", FrameOfReferenceUID=None, PatientSex="X")
    series(tmp_path / "s", change=empty)
    for path in (tmp_path / "s").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = dataset.SOPInstanceUID = ""
        del dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.save_as(path, enforce_file_format=False)
    sources = [read_source([tmp_path / "s"]) for _ in range(2)]
    assert "has no StudyInstanceUID and no SeriesInstanceUID" in caplog.text
    for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        first, second = ([str(header[key].value) for header in source.headers] for source in sources)
        assert first == second and all(first) and len(set(first)) == (SHAPE[0] if key == "SOPInstanceUID" else 1)
    write_dicom_seg(tmp_path / "out.dcm", label_map(), sources[0], structures())
    read = pydicom.dcmread(tmp_path / "out.dcm")
    assert read.StudyInstanceUID == sources[0].headers[0].StudyInstanceUID and read.PatientName == "Doe^Jane"


def test_names_of_any_script_come_back(tmp_path: Path) -> None:
    change = on_slice(-1, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    source = series(tmp_path / "s", change=change)
    for names, character_set in ((["liver"], "ISO_IR 100"), (["肝臓"], "ISO_IR 192")):
        write_dicom_seg(tmp_path / "out.dcm", label_map() // 4, source, structures(LabelSpec.from_names(names)))
        read = pydicom.dcmread(tmp_path / "out.dcm")
        assert str(read.PatientName) == "Müller^Jörg" and read.SpecificCharacterSet == character_set
        assert read.SegmentSequence[0].SegmentLabel == names[0]


def test_another_grid_is_refused_and_turned_axes_are_not(tmp_path: Path) -> None:
    source, array = series(tmp_path / "s"), label_map()
    for code in ("RAS", "LPI", "SRP"):
        own = axis_code(source.geometry)
        turned = np.ascontiguousarray(turn(array, own, code))
        assert np.array_equal(source.fitted(turned, turn_geometry(source.geometry, code)), array)
    shifted = source.geometry.matrix
    shifted[2, 3] += 0.5
    with pytest.raises(DataError, match=r"does not lie on the grid of the DICOM series .*other origin"):
        source.fitted(array, Geometry.from_affine(SHAPE, shifted))


def test_sheared_series_are_refused(tmp_path: Path) -> None:
    def tilt(z: int, dataset: Any) -> None:
        dataset.ImagePositionPatient[1] = 12.25 + z

    with pytest.raises(DataError, match=r"sheared \(gantry tilt"):
        series(tmp_path / "s", change=tilt)


def validator(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (pip install 'medkd[dev]')")
    return found


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_clunies_validator_finds_no_error(kind: str, tmp_path: Path) -> None:
    source = series(tmp_path / "s")
    write_dicom_seg(tmp_path / "out.dcm", label_map(), source, structures(), kind=kind)
    found = subprocess.run([validator("dciodvfy"), tmp_path / "out.dcm"], capture_output=True, text=True, check=False)
    assert [line for line in found.stderr.splitlines() if line.startswith("Error")] == [], found.stderr


@pytest.mark.parametrize(("kind", "labels"), [("binary", LABELS), ("labelmap", LABELS), ("binary", REGIONS)])
def test_dcmqi_reads_the_same_label_map(kind: str, labels: LabelSpec, tmp_path: Path) -> None:
    source = series(tmp_path / "s", orientation=ORIENTATIONS["oblique"])
    array = label_map(labels)
    array[0] = 1  # dcmqi leaves out empty planes at the ends
    write_dicom_seg(tmp_path / "out.dcm", array, source, structures(labels), kind=kind)
    inputs = ["--inputDICOM", str(tmp_path / "out.dcm"), "--outputDirectory", str(tmp_path)]
    command = [validator("segimage2itkimage"), *inputs]
    done = subprocess.run([*command, "--prefix", "q", "-t", "nrrd"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "q-meta.json").read_text())["segmentAttributes"]
    names = [entry["SegmentLabel"] for group in said for entry in group if entry["SegmentLabel"] != "Background"]
    assert sorted(names) == sorted(structure.name for structure in structures(labels))
    files = sorted(tmp_path.glob("q-*.nrrd"))
    assert files
    for file in files:
        found = read_label(file)
        assert found.geometry.differences(source.geometry) == []
        for value in np.unique(found.array[found.array > 0]):
            values = labels.foreground[value - 1][1]
            assert np.array_equal(found.array == value, np.isin(array, values))


@pytest.mark.real_data
@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_real_ct_with_thirty_organs(kind: str, real_data: Path, tmp_path: Path) -> None:
    """TotalSegmentator's label map of a DICOM series, whose axes run otherwise than the series'."""
    folder = real_data / "abdomen_ct"
    source = read_source([folder / "example_ct_dicom"])
    label = read_label(folder / "example_seg_dicom.nii.gz")
    array = source.fitted(label.array, label.geometry)
    names = [f"organ {value}" for value in range(1, 118)]
    write_dicom_seg(tmp_path / "o.dcm", array, source, structures(LabelSpec.from_names(names)), kind=kind)
    volume = highdicom.seg.segread(tmp_path / "o.dcm").get_volume(combine_segments=True)
    geometry = grid_of(volume)
    code = axis_code(label.geometry)
    assert turn_geometry(geometry, code).differences(read_geometry(folder / "example_seg_dicom.nii.gz")) == []
    assert np.array_equal(turn(volume.array, axis_code(geometry), code), label.array)
