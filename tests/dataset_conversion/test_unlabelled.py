"""Cases without labels through the converters: DICOM trees for a model, nnU-Net's raw layout, radiographs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataset_conversion import ConversionOptions, convert_dataset
from medkd.core.dataset import DatasetDescription, labelled_cases, training_cases, unlabelled_cases
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.io.volumes import read_image, read_volume, write_volume
from tests.dataset_conversion.own_trees import KINDS, boxes_of, make
from tests.dataset_conversion.own_trees import convert as convert_own
from tests.dataset_conversion.radiograph_trees import picture, save_jpeg
from tests.dataset_conversion.trees import SHAPE, SPACING, convert, make_nnunet
from tests.io.dicom_series import on_slice, stored_values, write_series

MODEL = DatasetDescription(channel_names=("CT",), labels=LabelSpec.from_names(["liver", "spleen"]), num_training=0)


def _series(folder: Path, number: int, seed: int | None = None) -> np.ndarray:
    write_series(
        folder, stored_values(seed=number if seed is None else seed), change=on_slice(-1, PatientID=f"patient{number}")
    )
    return read_volume(folder).array


def test_a_dicom_tree_becomes_scans_without_labels_for_a_model(tmp_path: Path) -> None:
    arrays = [_series(tmp_path / "pacs" / f"p{number}" / "study" / "series", number) for number in (1, 2)]
    arrays.append(_series(tmp_path / "pacs" / "p1" / "study" / "later", 1, seed=3))
    (tmp_path / "pacs" / "p1" / "report.txt").write_text("no image")
    options = ConversionOptions(settings={"like": MODEL})
    result = convert_dataset("folder", tmp_path / "pacs", 7, root=tmp_path / "root", options=options)
    assert result.ok, result.conversion.text() + result.verification.text()
    description = DatasetDescription.load(result.folder / "dataset.json")
    assert labelled_cases(result.folder, description) == [] and description.labels == MODEL.labels
    cases = unlabelled_cases(result.folder, description)
    assert len(cases) == 3
    of_first = [case.case for case in cases if "p1" in case.case]
    assert len(of_first) == 2 and len({description.patients[case] for case in of_first}) == 1
    assert len(set(description.patients.values())) == 2  # so that no fold has one of them on both sides
    found = [read_volume(case.images[0]).array for case in cases]
    assert sorted(array.tobytes() for array in found) == sorted(array.tobytes() for array in arrays)
    again = convert_dataset("folder", tmp_path / "pacs", 7, root=tmp_path / "root", options=options)
    assert len(again.conversion.unchanged) == 3
    with pytest.raises(DataError, match="cannot be linked to"):
        linked = ConversionOptions(settings={"like": MODEL}, mode="link")
        convert_dataset("folder", tmp_path / "pacs", 8, root=tmp_path / "root", options=linked)
    two = DatasetDescription(channel_names=("T1", "T2"), labels=MODEL.labels, num_training=0)
    with pytest.raises(DataError, match="one channel, but the model has 2"):
        options = ConversionOptions(settings={"like": two})
        convert_dataset("folder", tmp_path / "pacs", 9, root=tmp_path / "root", options=options)


def test_labelled_sets_and_label_maps_in_the_place_of_scans_are_refused(tmp_path: Path) -> None:
    source = make_nnunet(tmp_path)
    options = ConversionOptions(settings={"like": MODEL})
    with pytest.raises(DataError, match=r"found a data set with imagesTr or labelsTr; convert it with"):
        convert_dataset("folder", source, 7, root=tmp_path / "root", options=options)
    with pytest.raises(DataError, match=r"nothing but the values 0 to 2, .* these are label maps"):
        convert_dataset("folder", source / "labelsTr", 7, root=tmp_path / "root", options=options)
    assert not list(tmp_path.glob("root/raw/*/imagesUn/*"))


def _add_scans(source: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        voxels = np.random.default_rng(70 + number).normal(size=SHAPE).astype(np.float32)
        for channel in range(2):
            place = source / "imagesUn" / f"{name}_{channel:04d}.nii.gz"
            write_volume(place, voxels + channel, Geometry.from_spacing(SHAPE, SPACING))


def test_an_nnunet_folder_brings_its_scans_without_labels(tmp_path: Path) -> None:
    source = make_nnunet(tmp_path)
    _add_scans(source, ("plain_0", "plain_1", "lacking"))
    (source / "imagesUn" / "lacking_0001.nii.gz").unlink()
    (source / "imagesUn" / "stray.nii.gz").symlink_to(source / "imagesUn" / "plain_0_0000.nii.gz")
    result = convert("nnunet", source, tmp_path / "root")
    description = DatasetDescription.load(result.folder / "dataset.json")
    assert [case.case for case in unlabelled_cases(result.folder, description)] == ["plain_0", "plain_1"]
    assert result.conversion.left_out == ("lacking",) and description.num_training == 5
    assert all(path.is_symlink() for case in unlabelled_cases(result.folder, description) for path in case.images)
    assert any("stray.nii.gz" in finding.text() for finding in result.conversion.warnings)
    assert result.verification.ok, result.verification.text()


def test_an_nnunet_folder_of_scans_without_labels_alone(tmp_path: Path) -> None:
    source = make_nnunet(tmp_path)
    _add_scans(source, ("plain_0", "plain_1"))
    for name in ("imagesTr", "labelsTr"):
        shutil.rmtree(source / name)
    result = convert("nnunet", source, tmp_path / "root")
    description = DatasetDescription.load(result.folder / "dataset.json")
    assert labelled_cases(result.folder, description) == [] and description.num_training == 0
    assert len(unlabelled_cases(result.folder, description)) == 2
    with pytest.raises(DataError, match="found no label files"):
        training_cases(result.folder, description)


@pytest.mark.parametrize("kind", KINDS)
def test_radiographs_without_annotation_are_no_negatives(tmp_path: Path, kind: str) -> None:
    source = make(kind, tmp_path / "own")
    where = tmp_path / "others" if kind == "coco" else source / "new"
    for number in (20, 21):
        save_jpeg(where / f"x{number}.jpg", picture(number))
    result = convert_own(kind, source, tmp_path / "root", unlabelled="new" if kind != "coco" else str(where))
    assert result.ok, result.conversion.text() + result.verification.text()
    description = DatasetDescription.load(result.folder / "dataset.json")
    plain = unlabelled_cases(result.folder, description)
    assert [case.case for case in plain] == ["x20", "x21"] and not list(result.folder.glob("labels*/x2?.json"))
    assert len(training_cases(result.folder, description)) == 9 and (result.folder / "labelsTr" / "x2.json").exists()
    again = convert_own(kind, source, tmp_path / "root", unlabelled="new" if kind != "coco" else str(where))
    assert {"x20", "x21"} <= set(again.conversion.unchanged)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_folder_with_both_the_annotation_decides(tmp_path: Path, kind: str) -> None:
    """Of a COCO file that lists every image none is left; elsewhere negatives without a file are."""
    source = make(kind, tmp_path / "own")
    place = "JPEGImages" if kind == "voc" else "images"
    with_file = {number for number in range(9) if boxes_of(number) or number % 2}
    if kind == "coco":
        with pytest.raises(DataError, match="found 9 images, all annotated"):
            convert_own(kind, source, tmp_path / "root", unlabelled=place)
    else:
        result = convert_own(kind, source, tmp_path / "root", unlabelled=place)
        description = DatasetDescription.load(result.folder / "dataset.json")
        plain = unlabelled_cases(result.folder, description)
        assert [case.case for case in plain] == [f"x{number}" for number in range(9) if number not in with_file]
    with pytest.raises(DataError, match="names nowhere, which is no folder"):
        convert_own(kind, source, tmp_path / "root", unlabelled="nowhere")


def _pictures(folder: Path, count: int, channels: int = 3) -> list[np.ndarray]:
    from PIL import Image

    folder.mkdir(parents=True)
    drawn = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 20, channels), dtype=np.uint8)
        Image.fromarray(pixels.squeeze()).save(folder / f"scan_{number}.png")
        drawn.append(pixels)
    return drawn


RGB = replace(MODEL, channel_names=("R", "G", "B"), file_ending=".png")


def test_pictures_become_scans_without_labels_for_a_model_of_pictures(tmp_path: Path) -> None:
    drawn = _pictures(tmp_path / "pictures", 2)
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    options = ConversionOptions(settings={"like": RGB})
    result = convert_dataset("folder", tmp_path / "pictures", 7, root=tmp_path / "root", options=options)
    assert result.ok, result.conversion.text() + result.verification.text()
    description = DatasetDescription.load(result.folder / "dataset.json")
    assert description.file_ending == ".png" and description.num_training == 0
    cases = unlabelled_cases(result.folder, description)
    for case, pixels in zip(cases, drawn, strict=True):
        image, _ = read_image(case.images, case.case)
        np.testing.assert_array_equal(image[:, 0], np.moveaxis(pixels, -1, 0))


def test_pictures_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _pictures(tmp_path / "grey", 2, channels=1)
    options = ConversionOptions(settings={"like": RGB})
    with pytest.raises(DataError, match="expected 3 channels, found 1"):
        convert_dataset("folder", tmp_path / "grey", 7, root=tmp_path / "root", options=options)
    for name in ("annotations.json", "scan_1.json"):  # COCO's, LabelMe's
        (tmp_path / "grey" / name).write_text('{"images": []}')
    with pytest.raises(DataError, match="expected 3 channels, found 1"):
        convert_dataset("folder", tmp_path / "grey", 8, root=tmp_path / "root", options=options)
    (tmp_path / "grey" / "scan_0.json").write_text('{"spacing": [1, 1, 1]}')
    with pytest.raises(DataError, match="stand in JSON files beside them"):
        convert_dataset("folder", tmp_path / "grey", 8, root=tmp_path / "root", options=options)
    with pytest.raises(DataError, match=r"expected scans \(CASE\.nii\.gz and the like, or DICOM series\), found none"):
        plain = ConversionOptions(settings={"like": MODEL})
        convert_dataset("folder", tmp_path / "grey", 9, root=tmp_path / "root", options=plain)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"expected pictures ending in '\.png', as the model takes, found none"):
        convert_dataset("folder", tmp_path / "none", 9, root=tmp_path / "root", options=options)
