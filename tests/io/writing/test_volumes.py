"""Names and colours in the files of label maps, seen by readers that are none of medkd's."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.io.volumes import PICTURES, WRITABLE, file_ending, read_geometry, read_label, stem, write_volume
from medkd.io.writing.structures import structures_of
from medkd.io.writing.tables import colour_table
from medkd.io.writing.terms import known_terms

OBLIQUE = np.array([[0.96, -0.28, 0, 5], [0.28, 0.96, 0, -7], [0, 0, -2.0, 3], [0, 0, 0, 1.0]])
GRID = Geometry.from_affine((5, 6, 7), OBLIQUE)
STRUCTURES = structures_of(LabelSpec.from_names(["liver", "kidney_left", "a <b> & c", "absent"]), known_terms())


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, GRID.shape).astype(np.uint8)


@pytest.mark.parametrize("ending", [ending for ending in WRITABLE if ending not in PICTURES])
def test_names_change_neither_voxels_nor_geometry(ending: str, array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / f"case{ending}"
    write_volume(path, array, GRID, STRUCTURES)
    assert file_ending(path) == ending and stem(path) == "case"
    found = read_label(path)
    assert np.array_equal(found.array, array) and found.geometry.differences(GRID, tolerance=1e-5) == []
    image = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(image), array)


def test_slicers_own_reader_finds_the_segments(array: np.ndarray, tmp_path: Path) -> None:
    slicerio = pytest.importorskip("slicerio")
    write_volume(tmp_path / "case.seg.nrrd", array, GRID, STRUCTURES)
    found = slicerio.read_segmentation(str(tmp_path / "case.seg.nrrd"))
    assert found["containedRepresentationNames"] == ["Binary labelmap"]
    for structure, segment in zip(STRUCTURES, found["segments"], strict=True):
        assert segment["name"] == structure.name and segment["labelValue"] == structure.values[0]
        assert np.allclose(np.array(segment["color"]) * 255, structure.colour, atol=0.01)
    assert np.array_equal(found["voxels"].T, array)
    kidney = found["segments"][1]
    where = np.argwhere(array == 2)[:, ::-1]
    assert kidney["extent"] == np.stack([where.min(0), where.max(0)], 1).ravel().tolist()
    assert kidney["terminology"]["type"] == ["SCT", "64033007", "Kidney"]
    assert kidney["terminology"]["typeModifier"] == ["SCT", "7771000", "Left"]
    assert "terminology" not in found["segments"][2] and found["segments"][3]["extent"] == [0, -1, 0, -1, 0, -1]


def test_pynrrd_reads_the_header(array: np.ndarray, tmp_path: Path) -> None:
    nrrd = pytest.importorskip("nrrd")
    write_volume(tmp_path / "case.nrrd", array, GRID, STRUCTURES)
    voxels, header = nrrd.read(str(tmp_path / "case.nrrd"))
    assert np.array_equal(voxels.T, array) and header["Segment0_Name"] == "liver"
    assert header["Segment2_LabelValue"] == "3" and header["space"] == "left-posterior-superior"


def test_nifti_holds_a_label_table(array: np.ndarray, tmp_path: Path) -> None:
    write_volume(tmp_path / "case.nii.gz", array, GRID, STRUCTURES)
    (extension,) = nibabel.nifti1.Nifti1Image.from_filename(tmp_path / "case.nii.gz").header.extensions
    assert extension.get_code() == 30
    labels = {int(label.get("Key", -1)): label for label in ET.fromstring(extension.text).iter("Label")}
    assert {key: label.text for key, label in labels.items()} == {
        0: "background", 1: "liver", 2: "kidney_left", 3: "a <b> & c", 4: "absent",
    }  # fmt: skip
    red = float(labels[1].get("Red", "nan")) * 255
    assert abs(red - STRUCTURES[0].colour[0]) < 0.05
    write_volume(tmp_path / "plain.nii.gz", array, GRID)
    assert len(nibabel.nifti1.Nifti1Image.from_filename(tmp_path / "plain.nii.gz").header.extensions) == 0
    assert read_geometry(tmp_path / "case.nii.gz") == read_geometry(tmp_path / "plain.nii.gz")


def test_slicers_colour_table_has_a_line_per_value() -> None:
    lines = [line.split() for line in colour_table(STRUCTURES).splitlines() if not line.startswith("#")]
    assert [int(line[0]) for line in lines] == [0, 1, 2, 3, 4] and all(len(line) == 6 for line in lines)
    assert lines[3][1] == "a_<b>_&_c" and [int(part) for part in lines[1][2:5]] == list(STRUCTURES[0].colour)
