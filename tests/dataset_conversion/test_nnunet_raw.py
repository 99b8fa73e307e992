"""An existing nnUNet_raw data set: linked, checked, its own folds taken over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dataset_conversion.nnunet_raw import _check_ending
from medkd.core.dataset import DatasetDescription, training_cases
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.io.volumes import write_volume
from tests.dataset_conversion.trees import SHAPE, SPACING, convert, folds, make_nnunet, own


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_every_file_is_a_link_to_the_source(tmp_path: Path, ending: str) -> None:
    source = make_nnunet(tmp_path, ending=ending)
    result = convert("nnunet", source, tmp_path / "root")
    assert result.ok and result.folder.name == "Dataset007_Thing"
    files = list(result.folder.glob("*/*"))
    assert len(files) == 5 * 3 + 3 and all(
        p.is_symlink() and p.resolve().parent.parent == source.resolve() for p in files
    )
    description = DatasetDescription.load(result.folder / "dataset.json")
    assert (
        description.file_ending == ending
        and description.num_training == 5
        and own(result.folder) == {"format": "nnunet"}
    )
    assert len(training_cases(result.folder, description)) == 5


@pytest.mark.parametrize("place", ["Dataset042_Thing", "../nnUNet_preprocessed/Dataset042_Thing"])
def test_nnunets_own_folds_are_taken_over(tmp_path: Path, place: str) -> None:
    source = make_nnunet(tmp_path)
    target = (source.parent / place).resolve()
    target.mkdir(parents=True, exist_ok=True)
    split = [{"train": [f"thing_{i:02d}" for i in range(5) if i != k], "val": [f"thing_{k:02d}"]} for k in range(5)]
    (target / "splits_final.json").write_text(json.dumps(split))
    result = convert("nnunet", source, tmp_path / "root")
    assert folds(result.folder) == split and "splits_final.json" in own(result.folder)["split_source"]


def test_bad_cases_are_named_and_left_out(tmp_path: Path) -> None:
    source = make_nnunet(tmp_path, cases=6)
    grid = Geometry.from_spacing(SHAPE, SPACING)
    (source / "imagesTr/thing_00_0001.nii.gz").unlink()
    (source / "labelsTr/thing_01.nii.gz").unlink()
    write_volume(source / "labelsTr/thing_02.nii.gz", np.full(SHAPE, 7, np.uint8), grid)
    write_volume(source / "imagesTr/thing_03_0000.nii.gz", np.full(SHAPE, np.nan, np.float32), grid)
    result = convert("nnunet", source, tmp_path / "root")
    assert result.conversion.left_out == ("thing_00", "thing_01", "thing_02", "thing_03")
    texts = [f.text() for f in result.conversion.problems]
    for text, found in zip(texts, ("thing_00_0001", "a label map labelsTr/thing_01", "also 7", "NaN"), strict=True):
        assert found in text
    assert result.verification.ok and DatasetDescription.load(result.folder / "dataset.json").num_training == 2


def test_patients_are_taken_over_however_their_cases_are_spelled(tmp_path: Path) -> None:
    source = make_nnunet(tmp_path)
    (source / "imagesUn").mkdir()
    for channel in range(2):
        scan = (source / f"imagesTr/thing_00_000{channel}.nii.gz").read_bytes()
        (source / f"imagesUn/more_000{channel}.nii.gz").write_bytes(scan)
    data = json.loads((source / "dataset.json").read_text())
    stated = {f"thing_{number:02d}_0000.nii.gz": f"p{number // 2}" for number in range(5)}
    data["patients"] = {**stated, "more": "p0", "nobody": "p9"}
    (source / "dataset.json").write_text(json.dumps(data))
    result = convert("nnunet", source, tmp_path / "root")
    patients = DatasetDescription.load(result.folder / "dataset.json").patients
    assert patients == {**{f"thing_{number:02d}": f"p{number // 2}" for number in range(5)}, "more": "p0"}
    (text,) = [finding.text() for finding in result.conversion.problems]
    assert "'nobody', which is no case" in text


def test_files_listed_in_dataset_json_get_their_usual_names(tmp_path: Path) -> None:
    source = make_nnunet(tmp_path)
    data = json.loads((source / "dataset.json").read_text())
    (source / "scans").mkdir()
    data["dataset"] = {}
    for i in range(5):
        for channel in range(2):
            (source / f"imagesTr/thing_{i:02d}_{channel:04d}.nii.gz").rename(source / f"scans/{i}_{channel}.nii.gz")
        data["dataset"][f"thing_{i:02d}"] = {
            "images": [f"scans/{i}_{c}.nii.gz" for c in range(2)],
            "label": f"labelsTr/thing_{i:02d}.nii.gz",
        }
    (source / "dataset.json").write_text(json.dumps(data))
    result = convert("nnunet", source, tmp_path / "root")
    assert (
        result.ok
        and (result.folder / "imagesTr/thing_03_0001.nii.gz").resolve() == (source / "scans/3_1.nii.gz").resolve()
    )
    assert "dataset" not in json.loads((result.folder / "dataset.json").read_text())


def test_unusable_sources_are_refused(tmp_path: Path) -> None:
    source = make_nnunet(tmp_path)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/raw").symlink_to(source.parent)
    with pytest.raises(DataError, match="can be used as it is"):
        convert("nnunet", source, tmp_path / "root", number=42)
    data = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps({**data, "file_ending": ".npy"}))
    with pytest.raises(DataError, match=r"does not read files ending in '\.npy'"):
        convert("nnunet", source, tmp_path / "other")
    (source / "dataset.json").write_text(json.dumps({**data, "file_ending": ".mhd"}))
    with pytest.raises(DataError, match=r"second file.*convert them to \.nii\.gz"):
        convert("nnunet", source, tmp_path / "other")


def test_json_beside_tiffs_counts_where_it_is_called_as_one_and_states_a_voxel_size(tmp_path: Path) -> None:
    where, images = tmp_path / "dataset.json", tmp_path / "imagesTr"
    images.mkdir()
    (images / "case_0000.tif").touch()
    for name, content in {
        "_annotations.coco": {"images": []},
        "case": {"shapes": []},
        "other": {"spacing": [1, 1, 1]},
    }.items():
        (images / f"{name}.json").write_text(json.dumps(content))
    _check_ending(".tif", where)
    (images / "case.json").write_text('{"spacing": [2, 1, 1]}')
    with pytest.raises(DataError, match="stand in JSON files beside them"):
        _check_ending(".tif", where)


def make_version_1(folder: Path, channels: int = 2) -> Path:
    """A task folder of nnU-Net v1: the list names the cases without their channels."""
    source = make_nnunet(folder / "v2", cases=3)
    task = folder / "Task042_Thing"
    source.rename(task)
    description = json.loads((task / "dataset.json").read_text())
    labels = description["labels"]
    listed = [f"thing_{i:02d}.nii.gz" for i in range(3)]
    old = {
        "modality": description["channel_names"],
        "labels": {str(value): name for name, value in labels.items()},
        "numTraining": 3,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in listed],
        "test": [],
    }
    (task / "dataset.json").write_text(json.dumps(old))
    return task


@pytest.mark.parametrize("format", ["nnunet", "msd"])
def test_a_task_folder_of_version_1_becomes_the_same_data_set(tmp_path: Path, format: str) -> None:
    new = make_nnunet(tmp_path / "new", cases=3)
    result = convert(format, make_version_1(tmp_path), tmp_path / "root")
    assert result.ok and any("nnU-Net v1" in note for note in result.conversion.notes), result.conversion.text()
    assert result.folder.name == "Dataset007_Thing"
    found, expected = (DatasetDescription.load(folder / "dataset.json") for folder in (result.folder, new))
    assert (found.labels, found.channel_names, found.num_training) == (expected.labels, expected.channel_names, 3)
    for path in (new / "imagesTr").iterdir():
        assert (result.folder / "imagesTr" / path.name).read_bytes() == path.read_bytes()


def test_a_channel_that_is_missing_in_version_1_is_named(tmp_path: Path) -> None:
    task = make_version_1(tmp_path)
    (task / "imagesTr/thing_01_0001.nii.gz").unlink()
    report = convert("nnunet", task, tmp_path / "root").conversion
    assert report.left_out == ("thing_01",) and "thing_01_0000.nii.gz" in report.problems[0].text()


def test_version_1_is_named_where_it_is_used_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nnU-Net v1 or the Decathlon.*medkd_convert nnunet"):
        DatasetDescription.load(make_version_1(tmp_path) / "dataset.json")
