"""Decathlon tasks, plain folders and archives: conversion, continuation, bad cases, failing disks."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dataset_conversion import ConversionOptions, convert_dataset
from dataset_conversion import writer as writer_module
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.io.nifti import write_nifti
from medkd.io.volumes import read_label, read_volume, write_volume
from tests.dataset_conversion.task_trees import GRID, SHAPE, convert, make_plain, make_task, tree


def test_a_task_is_split_into_channels_and_its_description_translated(tmp_path: Path) -> None:
    task = make_task(tmp_path / "Task01_Brain")
    before = tree(task)
    result = convert(task, tmp_path / "root")
    assert result.ok and result.verification.ok
    assert result.conversion.converted == ("BRATS_000", "BRATS_001", "BRATS_002", "BRATS_003")
    description = DatasetDescription.load(result.folder / "dataset.json")
    assert description.channel_names == ("FLAIR", "T1w") and description.num_training == 3
    assert [name for name, _ in description.labels.entries] == ["background", "edema", "tumour"]
    names = {str(p.relative_to(result.folder)) for p in result.folder.glob("*/*")}
    assert names == {
        *(f"imagesTr/BRATS_{i:03d}_{c:04d}.nii.gz" for i in range(3) for c in range(2)),
        *(f"imagesTs/BRATS_003_{c:04d}.nii.gz" for c in range(2)),
        *(f"labelsTr/BRATS_{i:03d}.nii.gz" for i in range(3)),
    }
    import nibabel as nib

    four = np.asanyarray(nib.load(task / "imagesTr/BRATS_002.nii.gz").dataobj)
    for c in range(2):
        channel = read_volume(result.folder / f"imagesTr/BRATS_002_{c:04d}.nii.gz", None)
        np.testing.assert_array_equal(channel.array, four[..., c].T)
        assert channel.array.dtype == np.int16 and channel.geometry == GRID
    assert tree(task) == before, "the source must not change"


def test_float_labels_become_uint8_and_correct_files_are_taken_over_byte_for_byte(tmp_path: Path) -> None:
    task = make_task(tmp_path / "T", channels=1)
    folder = convert(task, tmp_path / "root").folder
    label = read_volume(folder / "labelsTr/BRATS_001.nii.gz", None).array
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, read_volume(task / "labelsTr/BRATS_001.nii.gz").array)
    for name, original in [
        ("imagesTr/BRATS_000_0000", "imagesTr/BRATS_000"),
        ("labelsTr/BRATS_000", "labelsTr/BRATS_000"),
    ]:
        assert (folder / f"{name}.nii.gz").read_bytes() == (task / f"{original}.nii.gz").read_bytes()


def test_running_again_writes_nothing_and_a_changed_case_is_made_again(tmp_path: Path) -> None:
    task = make_plain(tmp_path / "P")
    folder = convert(task, tmp_path / "root").folder
    before = {k: v for k, v in tree(folder).items() if "/" in k}
    again = convert(task, tmp_path / "root")
    assert again.conversion.converted == () and again.conversion.unchanged == ("p0", "p1", "p2")
    assert {k: v for k, v in tree(folder).items() if "/" in k} == before
    write_volume(task / "labelsTr/p1.nii.gz", np.ones(SHAPE, np.uint8), GRID)
    (folder / "imagesTr/p2_0000.nii.gz").unlink()
    third = convert(task, tmp_path / "root")
    assert third.conversion.converted == ("p1", "p2") and third.conversion.unchanged == ("p0",)
    assert read_label(folder / "labelsTr/p1.nii.gz").array.min() == 1


def test_linked_files_point_to_the_source_and_keep_its_permissions(tmp_path: Path) -> None:
    task = make_plain(tmp_path / "P")
    original = task / "imagesTr/p0.nii.gz"
    original.chmod(0o400)
    folder = convert(task, tmp_path / "root", mode="link").folder
    assert (folder / "imagesTr/p0_0000.nii.gz").is_symlink()
    assert (folder / "imagesTr/p0_0000.nii.gz").resolve() == original.resolve()
    assert original.stat().st_mode & 0o777 == 0o400
    copied = convert(task, tmp_path / "root", mode="copy")
    assert copied.conversion.converted == ("p0", "p1", "p2")
    assert not (folder / "imagesTr/p0_0000.nii.gz").is_symlink() and original.exists()


def test_label_names_are_given_or_made_up_and_gaps_are_closed(tmp_path: Path) -> None:
    task = make_plain(tmp_path / "P", values=(0, 2, 5))
    result = convert(task, tmp_path / "root")
    assert result.ok
    assert json.loads((result.folder / "dataset.json").read_text())["labels"] == {
        "background": 0,
        "label_2": 1,
        "label_5": 2,
    }
    old, new = (read_label(f / "labelsTr/p0.nii.gz").array for f in (task, result.folder))
    np.testing.assert_array_equal(new, np.select([old == 2, old == 5], [1, 2], 0))
    assert any("2→1, 5→2" in note for note in result.conversion.notes)
    named = convert_dataset(
        "msd",
        make_plain(tmp_path / "Q"),
        8,
        root=tmp_path / "root",
        options=ConversionOptions(labels=("a", "b"), channels=("CT",)),
    )
    data = json.loads((named.folder / "dataset.json").read_text())
    assert data["labels"] == {"background": 0, "a": 1, "b": 2} and data["channel_names"] == {"0": "CT"}
    assert named.folder.name == "Dataset008_Q"


def test_files_with_channel_endings_and_other_formats_are_accepted(tmp_path: Path) -> None:
    task = make_plain(tmp_path / "P", cases=2)
    for i in range(2):
        (task / f"imagesTr/p{i}.nii.gz").rename(task / f"imagesTr/p{i}_0000.nii.gz")
        array = read_volume(task / f"imagesTr/p{i}_0000.nii.gz").array
        write_volume(task / f"imagesTr/p{i}_0001.nrrd", array * 2, GRID)
    result = convert(task, tmp_path / "root", channels=("T1", "T2"))
    assert result.ok and result.conversion.converted == ("p0", "p1")
    first, second = (read_volume(result.folder / f"imagesTr/p1_{c:04d}.nii.gz") for c in range(2))
    np.testing.assert_array_equal(first.array * 2, second.array)
    assert not first.geometry.differences(second.geometry)


def spoil(task: Path, kind: str) -> None:
    image, label = task / "imagesTr/p1.nii.gz", task / "labelsTr/p1.nii.gz"
    if kind == "truncated":
        image.write_bytes(image.read_bytes()[:-100])
    elif kind == "nan":
        write_volume(image, np.full(SHAPE, np.nan, np.float32), GRID)
    elif kind == "size":
        write_volume(label, np.zeros((5, 6, 8), np.uint8), Geometry.from_spacing((5, 6, 8), GRID.spacing))
    elif kind == "value":
        write_volume(label, np.full(SHAPE, 9, np.uint8), GRID)
    elif kind == "4D":
        write_nifti(image, np.zeros((7, 6, 5, 2), np.int16), GRID.matrix)
    elif kind == "no label":
        label.unlink()
    elif kind == "no image":
        image.unlink()


TEXTS = {
    "truncated": "truncated or damaged",
    "nan": "210 NaN",
    "size": "same shape as p1.nii.gz",
    "value": "also 9",
    "4D": "expected 1 channels, found 2",
    "no label": "expected a label map p1",
    "no image": "expected an image p1",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_bad_case_is_named_and_left_out_and_the_rest_is_converted(tmp_path: Path, kind: str) -> None:
    task = make_plain(tmp_path / "P")
    spoil(task, kind)
    result = convert(task, tmp_path / "root", labels=("a", "b"))
    assert not result.ok and result.verification.ok
    assert result.conversion.left_out == ("p1",) and result.conversion.converted == ("p0", "p2")
    assert len(result.conversion.problems) == 1 and TEXTS[kind] in result.conversion.problems[0].text()
    assert not list(result.folder.rglob("*p1*"))
    assert json.loads((result.folder / "dataset.json").read_text())["numTraining"] == 2
    assert json.loads((result.folder / "conversion_report.json").read_text())["left_out"] == ["p1"]
    assert "p1" in (result.folder / "conversion_report.txt").read_text()


def test_a_case_that_turned_bad_disappears_from_the_result_and_comes_back_when_mended(tmp_path: Path) -> None:
    task = make_plain(tmp_path / "P")
    good = (task / "imagesTr/p1.nii.gz").read_bytes()
    folder = convert(task, tmp_path / "root", labels=("a", "b")).folder
    spoil(task, "nan")
    assert convert(task, tmp_path / "root", labels=("a", "b")).conversion.left_out == ("p1",)
    assert not list(folder.rglob("*p1*"))
    (task / "imagesTr/p1.nii.gz").write_bytes(good)
    result = convert(task, tmp_path / "root", labels=("a", "b"))
    assert result.ok and result.conversion.converted == ("p1",)


def test_files_listed_but_absent_and_present_but_unlisted_are_named(tmp_path: Path) -> None:
    task = make_task(tmp_path / "T", channels=1)
    (task / "imagesTr/BRATS_000.nii.gz").unlink()
    shutil.copy(task / "imagesTr/BRATS_001.nii.gz", task / "imagesTr/BRATS_777.nii.gz")
    report = convert(task, tmp_path / "root").conversion
    assert report.left_out == ("BRATS_000",) and "no such file" in report.problems[0].text()
    assert "BRATS_777" in report.warnings[0].text()


@pytest.mark.parametrize("error", [errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("after", [0, 3])
def test_a_full_or_read_only_disk_is_one_error_and_the_run_can_be_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, after: int
) -> None:
    """Running as root ignores permissions, so the failing calls are simulated."""
    task = make_plain(tmp_path / "P")
    real, calls = os.replace, iter(range(1000))

    def fail(*arguments: str) -> None:
        if next(calls) >= after:
            raise OSError(error, os.strerror(error))
        real(*arguments)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match=os.strerror(error)):
        convert(task, tmp_path / "root", workers=1)
    monkeypatch.undo()
    folder = tmp_path / "root/raw/Dataset007_Test"
    assert not (folder / "dataset.json").exists()
    left = {p.name for p in folder.rglob("*.nii.gz")}
    assert left == (set() if after == 0 else {"p0_0000.nii.gz", "p0.nii.gz"}), "a case is whole or absent"
    result = convert(task, tmp_path / "root")
    assert result.ok and len(result.conversion.unchanged) == (0 if after == 0 else 1)


def test_a_root_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="choose a root that can be written to"):
        convert(make_plain(tmp_path / "P"), tmp_path / "file")


def test_unusable_sources_are_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("x")
    (tmp_path / "none/imagesTr").mkdir(parents=True)
    (tmp_path / "none/labelsTr").mkdir(parents=True)
    for name, text in {
        "missing": "does not exist",
        "empty": "expected the folders",
        "text": "neither a folder",
        "none": "no pair",
    }.items():
        with pytest.raises(DataError, match=text):
            convert(tmp_path / name, tmp_path / "root")
    assert not (tmp_path / "root").exists()
    spoiled = make_plain(tmp_path / "P", cases=1)
    (spoiled / "imagesTr/p0.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"No case of .* could be converted"):
        convert(spoiled, tmp_path / "root")
    assert not list((tmp_path / "root").rglob("dataset.json"))


@pytest.mark.parametrize("modality", ["MR", ["MR"], {"FLAIR": 0, "T1w": 1}])
def test_modalities_of_another_form_are_named_and_can_be_given(tmp_path: Path, modality: object) -> None:
    task = make_task(tmp_path / "Task01_Brain", cases=1)
    described = json.loads((task / "dataset.json").read_text())
    (task / "dataset.json").write_text(json.dumps(described | {"modality": modality}))
    with pytest.raises(DataError, match=r"dataset.json: expected 'modality' as numbers with names.*give --channels"):
        convert(task, tmp_path / "root")
    assert convert(task, tmp_path / "root", channels=("FLAIR", "T1w")).ok


def test_number_name_and_source_must_not_clash(tmp_path: Path) -> None:
    convert(make_plain(tmp_path / "P"), tmp_path / "root")
    with pytest.raises(DataError, match="Number 7 is taken"):
        convert_dataset("msd", tmp_path / "P", 7, name="Other", root=tmp_path / "root")
    with pytest.raises(DataError, match="was converted from"):
        convert(make_plain(tmp_path / "Q"), tmp_path / "root")
    with pytest.raises(DataError, match="Did you mean 'msd'"):
        convert_dataset("mds", tmp_path / "P", 9, root=tmp_path / "root")


def test_an_unexpected_error_names_its_case(tmp_path: Path) -> None:
    job = writer_module.CaseJob(case="c7", sources=(), prepare=lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    writer = writer_module.RawWriter(tmp_path / "Dataset001_A", "x", tmp_path, ConversionOptions())
    with pytest.raises(RuntimeError, match="case c7"):
        writer.convert([job])


@pytest.mark.real_data
def test_hippocampus_cases_are_converted_unchanged_and_float_labels_become_uint8(
    real_data: Path, tmp_path: Path
) -> None:
    """001 and 004 are as they should be; the label map of 003 is stored as float32."""
    source = tmp_path / "hippocampus"
    for part in ("imagesTr", "labelsTr"):
        (source / part).mkdir(parents=True)
        for case in ("001", "003", "004", "243"):
            shutil.copy(real_data / "hippocampus" / part / f"hippocampus_{case}.nii.gz", source / part)
    result = convert(source, tmp_path / "root", labels=("anterior", "posterior"), channels=("MR",))
    assert result.ok and len(result.conversion.converted) == 4
    for case in ("001", "003", "004", "243"):
        original, copy = (read_label(f / f"labelsTr/hippocampus_{case}.nii.gz") for f in (source, result.folder))
        np.testing.assert_array_equal(original.array, copy.array)
        assert original.geometry == copy.geometry
        assert read_volume(result.folder / f"labelsTr/hippocampus_{case}.nii.gz", None).array.dtype == np.uint8
        image = (result.folder / f"imagesTr/hippocampus_{case}_0000.nii.gz").read_bytes()
        assert image == (source / f"imagesTr/hippocampus_{case}.nii.gz").read_bytes()


@pytest.mark.real_data
def test_real_images_with_different_grids_are_left_out(real_data: Path, tmp_path: Path) -> None:
    source = make_plain(tmp_path / "P")
    for case, channel in [("t2_tse_tra_4", 0), ("ep2d_diff_tra_7", 1)]:
        shutil.copy(
            real_data / f"odd_files/monai/test_0000_{case}.nii.gz", source / f"imagesTr/prostate_{channel:04d}.nii.gz"
        )
    t2 = read_volume(source / "imagesTr/prostate_0000.nii.gz")
    write_volume(source / "labelsTr/prostate.nii.gz", np.ones(t2.array.shape, np.uint8), t2.geometry)
    for i in range(3):
        (source / f"imagesTr/p{i}.nii.gz").rename(source / f"imagesTr/p{i}_0000.nii.gz")
        shutil.copy(source / f"imagesTr/p{i}_0000.nii.gz", source / f"imagesTr/p{i}_0001.nii.gz")
    report = convert(source, tmp_path / "root").conversion
    assert report.left_out == ("prostate",) and "prostate_0001" in report.problems[0].text()
    assert report.converted == ("p0", "p1", "p2")
