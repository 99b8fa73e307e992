"""RT Structure Sets: outlines that hold exactly the voxels of a label map, where these lie."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from scipy.ndimage import label as components

pydicom = pytest.importorskip("pydicom")

from medkd.io.writing.contours import outlines, signed_area  # noqa: E402
from medkd.io.writing.maker import Maker  # noqa: E402
from medkd.io.writing.rtstruct import write_rtstruct  # noqa: E402
from tests.io.dicom_series import SHAPE  # noqa: E402
from tests.io.test_dicom import ORIENTATIONS  # noqa: E402
from tests.io.writing.test_dicom_seg import REGIONS, UID, label_map, series, structures, validator  # noqa: E402


def filled(polygons: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The pixels whose centres lie in an odd number of polygons, by matplotlib."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    points = np.stack([columns.ravel(), rows.ravel()], 1)
    inside = np.zeros(len(points), bool)
    for polygon in polygons:
        inside ^= Polygon(np.vstack([polygon, polygon[:1]])).contains_points(points)
    return inside.reshape(shape)


def test_outlines_hold_exactly_the_mask() -> None:
    """Random masks with holes, islands in holes and pixels that touch at a corner."""
    generator = np.random.default_rng(0)
    for _ in range(400):
        shape = tuple(generator.integers(1, 9, 2))
        mask = generator.random(shape) < generator.choice([0.2, 0.5, 0.8, 1.0])
        polygons = outlines(mask)
        assert np.array_equal(filled(polygons, shape), mask)
        assert sum(map(signed_area, polygons)) == mask.sum()
        assert sum(signed_area(polygon) > 0 for polygon in polygons) == components(mask)[1]
        for polygon in polygons:  # no corner lies between collinear neighbours
            steps = np.diff(np.vstack([polygon, polygon[:1]]), axis=0)
            assert ((steps == 0).sum(1) == 1).all() and ((steps[:, 0] == 0) != (np.roll(steps[:, 0], 1) == 0)).all()


def test_large_outlines_are_short() -> None:
    mask = np.zeros((512, 512), bool)
    mask[100:400, 50:300] = True
    (polygon,) = outlines(mask)
    assert sorted(map(tuple, polygon.tolist())) == [(49.5, 99.5), (49.5, 399.5), (299.5, 99.5), (299.5, 399.5)]


def masks_of(dataset: Any, source: Any) -> dict[str, np.ndarray]:
    """Name → mask, from the points in patient coordinates alone."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ source.geometry.matrix
    names = {item.ROINumber: item.ROIName for item in dataset.StructureSetROISequence}
    found = {}
    for region in dataset.ROIContourSequence:
        planes: dict[int, list[np.ndarray]] = {}
        for contour in region.get("ContourSequence", ()):
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert contour.NumberOfContourPoints == len(points)
            indices = (np.linalg.inv(lps) @ np.column_stack([points, np.ones(len(points))]).T)[:3].T
            z = round(float(indices[0, 2]))
            assert np.abs(indices[:, 2] - z).max() < 1e-3
            assert source.headers[z].SOPInstanceUID == contour.ContourImageSequence[0].ReferencedSOPInstanceUID
            planes.setdefault(z, []).append(indices[:, :2])
        mask = np.zeros(source.geometry.shape, bool)
        for z, polygons in planes.items():
            mask[z] = filled(polygons, mask.shape[1:])
        found[names[region.ReferencedROINumber]] = mask
    return found


@pytest.mark.parametrize("orientation", ["axial", "oblique", "sagittal"])
def test_voxels_come_back_from_patient_coordinates(orientation: str, tmp_path: Path) -> None:
    source = series(tmp_path / "s", orientation=ORIENTATIONS[orientation])
    array = label_map(REGIONS)
    write_rtstruct(tmp_path / "rt.dcm", array, source, structures(REGIONS), Maker("tiny", "ab" * 32))
    found = masks_of(pydicom.dcmread(tmp_path / "rt.dcm"), source)
    assert list(found) == ["whole_tumor", "tumor_core", "enhancing_tumor"]
    for least, mask in enumerate(found.values(), start=1):
        assert np.array_equal(mask, array >= least)


def test_patient_series_colours_and_codes_are_stated(tmp_path: Path) -> None:
    source = series(tmp_path / "s")
    array = np.zeros(SHAPE, np.uint8)
    array[1, 2:7, 2:8] = 1
    array[1, 4, 4] = 0
    array[2, 2:7, 2:8] = 2
    write_rtstruct(tmp_path / "rt.dcm", array, source, structures())
    read = pydicom.dcmread(tmp_path / "rt.dcm")
    assert (str(read.PatientName), read.StudyInstanceUID, read.Modality) == ("Doe^Jane", "1.2.3.4", "RTSTRUCT")
    frame = read.ReferencedFrameOfReferenceSequence[0]
    assert frame.FrameOfReferenceUID == "1.2.3.9"
    referenced = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == UID and len(referenced.ContourImageSequence) == SHAPE[0]
    liver, kidney, thing, _ = read.ROIContourSequence
    assert list(liver.ROIDisplayColor) == list(structures()[0].colour) and "ContourSequence" not in thing
    assert {contour.ContourGeometricType for contour in liver.ContourSequence} == {"CLOSEDPLANAR_XOR"}
    assert [contour.ContourGeometricType for contour in kidney.ContourSequence] == ["CLOSED_PLANAR"]
    codes = read.RTROIObservationsSequence[1].RTROIIdentificationCodeSequence[0]
    assert (codes.CodeValue, codes.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("64033007", "Left")
    assert "RTROIIdentificationCodeSequence" not in read.RTROIObservationsSequence[2]
    found = subprocess.run([validator("dciodvfy"), tmp_path / "rt.dcm"], capture_output=True, text=True, check=False)
    assert [line for line in found.stderr.splitlines() if line.startswith("Error")] == [], found.stderr
