"""DICOM series with label maps whose axes run otherwise; series without label map; and what cannot be paired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset_conversion.dicom import align
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.io.volumes import Volume, read_label, read_volume, write_volume
from tests.dataset_conversion.trees import convert, own, tree
from tests.io.dicom_series import SHAPE, on_slice, stored_values, write_series
from tests.io.test_dicom import ORIENTATIONS

FLIPS = [
    ((0, 1, 2), (1, 1, 1)),
    ((0, 1, 2), (-1, 1, 1)),
    ((0, 1, 2), (-1, -1, -1)),
    ((2, 0, 1), (1, -1, 1)),
    ((1, 0, 2), (-1, 1, -1)),
]


def turned(label: Volume, order: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """The same label map with its index axes ``(x, y, z)`` permuted and flipped, voxel by voxel."""
    array = label.array.T.transpose(order)
    affine = label.geometry.matrix[:, [*order, 3]]
    for axis, sign in enumerate(signs):
        if sign < 0:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    return Volume(np.ascontiguousarray(array.T), Geometry.from_affine(array.T.shape, affine))


def make(
    folder: Path, name: str, *, seed: int = 0, patient: str = "", label: Path | None = None, **series: Any
) -> Volume:
    """A series and, below ``label``, its label map with the values 0-2 on the same grid; returns the label map."""
    change = on_slice(-1, PatientID=patient)
    write_series(folder / name, stored_values(seed=seed), change=series.pop("change", change), **series)
    grid = read_volume(folder / name).geometry
    mask = Volume(stored_values(high=3, seed=seed + 99).astype(np.uint8), grid)
    if label is not None:
        write_volume(label / f"{name.replace('/', '_')}.nii.gz", mask.array, mask.geometry)
    return mask


def run(tmp_path: Path, **settings: str) -> Any:
    settings = {"label-folder": str(tmp_path / "labels")} | settings
    return convert("dicom", tmp_path / "scans", tmp_path / "root", settings=settings, labels=("liver", "tumour"))


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize(("order", "signs"), FLIPS)
def test_axes_are_put_in_order_without_changing_a_voxel(
    orientation: tuple[float, ...], order: tuple[int, ...], signs: tuple[int, ...], tmp_path: Path
) -> None:
    mask = make(tmp_path, "a", orientation=orientation)
    aligned = align(turned(mask, order, signs), mask.geometry)
    assert np.array_equal(aligned.array, mask.array)
    assert aligned.geometry.differences(mask.geometry) == []


def test_series_become_training_and_test_cases(tmp_path: Path) -> None:
    masks = {}
    for i, name in enumerate(("p1/CT", "p2/CT", "p3/CT")):
        masks[name] = make(tmp_path / "scans", name, seed=i, patient=f"Doe{(i + 1) // 2}")
        moved = turned(masks[name], *FLIPS[i + 1])
        write_volume(tmp_path / "labels" / f"{name.replace('/', '_')}.nii.gz", moved.array, moved.geometry)
    make(tmp_path / "scans", "p4/CT", seed=4)
    make(tmp_path / "scans", "p4/PET", change=on_slice(-1, Modality="PT"))
    write_series(tmp_path / "scans" / "p4" / "scout", stored_values()[:1])
    before = tree(tmp_path / "scans")
    result = run(tmp_path)
    assert result.ok, result.conversion.text() + result.verification.text()
    assert tree(tmp_path / "scans") == before
    description = DatasetDescription.load(result.folder / "dataset.json")
    assert description.channel_names == ("CT",) and description.num_training == 3
    assert description.patients == {"p1_CT": "patient_1", "p2_CT": "patient_2", "p3_CT": "patient_2"}
    assert own(result.folder)["format"] == "dicom" and "Doe" not in (result.folder / "dataset.json").read_text()
    for i, (name, mask) in enumerate(masks.items()):
        case = name.replace("/", "_")
        image = read_volume(result.folder / f"imagesTr/{case}_0000.nii.gz", None)
        label = read_label(result.folder / f"labelsTr/{case}.nii.gz")
        assert image.array.dtype == np.int16 and np.array_equal(image.array, stored_values(seed=i) - 1024)
        assert np.array_equal(label.array, mask.array)
        for written in (image, label):
            assert written.geometry.differences(read_volume(tmp_path / "scans" / name).geometry) == []
    assert [p.name for p in (result.folder / "imagesTs").iterdir()] == ["p4_CT_0000.nii.gz"]
    text = " ".join(result.conversion.text().split())
    assert "p4_PET" in text and "found PT" in text and "single slice" in text and "p4_CT = CT series 2" in text
    again = run(tmp_path)
    assert len(again.conversion.unchanged) == 4 and not again.conversion.converted


def test_values_without_names_are_named(tmp_path: Path) -> None:
    make(tmp_path / "scans", "a", label=tmp_path / "labels")
    result = convert(
        "dicom", tmp_path / "scans", tmp_path / "root", settings={"label-folder": str(tmp_path / "labels")}
    )
    assert json.loads((result.folder / "dataset.json").read_text())["labels"] == {
        "background": 0,
        "label_1": 1,
        "label_2": 2,
    }


def test_what_does_not_fit_is_left_out_with_a_reason_and_the_rest_is_converted(tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    good = make(tmp_path / "scans", "good", label=labels)
    for name in ("gap", "smaller", "shifted"):
        make(tmp_path / "scans", name, seed=3, label=labels)
    (tmp_path / "scans" / "gap" / "slice28").unlink()
    write_volume(
        labels / "smaller.nii.gz", good.array[1:], Geometry.from_affine(good.array[1:].shape, good.geometry.matrix)
    )
    moved = good.geometry.matrix
    moved[0, 3] += 5
    write_volume(labels / "shifted.nii.gz", good.array, Geometry.from_affine(SHAPE, moved))
    write_volume(labels / "nobody.nii.gz", good.array, good.geometry)
    result = run(tmp_path)
    assert not result.ok and result.conversion.converted == ("good",)
    problems = {finding.case: finding.text() for finding in result.conversion.problems}
    assert set(problems) == {"gap", "smaller", "shifted", "nobody"}
    assert "slices are missing" in problems["gap"] and "same shape" in problems["smaller"]
    assert "origin" in problems["shifted"] and "a series nobody" in problems["nobody"]


def test_a_damaged_file_beside_the_series_is_a_problem(tmp_path: Path) -> None:
    make(tmp_path / "scans", "good", label=tmp_path / "labels")
    bad = write_series(tmp_path / "scans" / "bad", stored_values()[:1])[0]
    bad.write_bytes(bad.read_bytes()[:250])
    result = run(tmp_path)
    assert result.conversion.converted == ("good",) and not result.ok
    assert [finding.file for finding in result.conversion.problems] == [str(bad)]


def test_one_patient_id_for_everybody_does_not_group(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(tmp_path / "scans", name, patient="ANON", label=tmp_path / "labels")
    assert not DatasetDescription.load(run(tmp_path).folder / "dataset.json").patients


def test_unusable_sources_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "scans", "a", label=tmp_path / "labels")
    with pytest.raises(DataError, match="--label-folder"):
        run(tmp_path, **{"label-folder": ""})
    with pytest.raises(DataError, match="does not exist"):
        run(tmp_path, **{"label-folder": str(tmp_path / "nowhere")})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"named like the series \(a\), found none"):
        run(tmp_path, **{"label-folder": str(tmp_path / "empty")})
    with pytest.raises(DataError, match="without DICOM images"):
        convert("dicom", tmp_path / "empty", tmp_path / "root")
    options: dict[str, Any] = {"settings": {"label-folder": str(tmp_path / "labels")}}
    with pytest.raises(DataError, match="leave out --link"):
        convert("dicom", tmp_path / "scans", tmp_path / "root", mode="link", **options)
    with pytest.raises(DataError, match="one channel, found 2"):
        convert("dicom", tmp_path / "scans", tmp_path / "root", channels=("a", "b"), **options)
    make(tmp_path / "scans", "b", label=tmp_path / "labels", change=on_slice(-1, Modality="MR"))
    with pytest.raises(DataError, match=r"one modality, found CT \(a\), MR \(b\)"):
        run(tmp_path)


@pytest.mark.real_data
def test_the_real_ct_keeps_its_hounsfield_units_in_the_liver(tmp_path: Path, real_data: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "example_ct_dicom.nii.gz").symlink_to(real_data / "abdomen_ct" / "example_seg_dicom.nii.gz")
    settings = {"label-folder": str(tmp_path / "labels")}
    result = convert("dicom", real_data / "abdomen_ct" / "example_ct_dicom", tmp_path / "root", settings=settings)
    assert result.ok, result.conversion.text()
    image = read_volume(result.folder / "imagesTr" / "example_ct_dicom_0000.nii.gz")
    label = read_label(result.folder / "labelsTr" / "example_ct_dicom.nii.gz")
    assert label.geometry.differences(image.geometry) == []
    value = result_value(result.folder, "label_5")
    values = image.array[label.array == value]
    assert values.mean() == pytest.approx(89, abs=1) and values.std() == pytest.approx(22, abs=1)


def result_value(folder: Path, name: str) -> int:
    return int(json.loads((folder / "dataset.json").read_text())["labels"][name])
