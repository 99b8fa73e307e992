"""WORD as downloaded: three parts; the official validation cases are fold 0's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from tests.dataset_conversion.trees import convert, folds, make_word, own


def test_the_official_parts_become_fold_0_and_a_labelled_test_set(tmp_path: Path) -> None:
    result = convert("word", make_word(tmp_path / "download"), tmp_path / "root")
    assert result.ok and result.folder.name == "Dataset007_WORD"
    names = [f"word_{i:04d}" for i in range(1, 8)]
    assert folds(result.folder) == [{"train": names[:4], "val": names[4:6]}]
    assert own(result.folder) == {"format": "word", "split_source": "official folders imagesTr and imagesVal of WORD"}
    assert sorted(p.name for p in (result.folder / "labelsTr").iterdir()) == [f"{n}.nii.gz" for n in names[:6]]
    assert [p.name for p in (result.folder / "labelsTs").iterdir()] == ["word_0007.nii.gz"]
    description = DatasetDescription.load(result.folder / "dataset.json")
    assert description.num_training == 6 and len(description.labels.foreground) == 16
    assert description.labels.foreground[12] == ("rectum", (13,))


def test_running_again_keeps_everything_including_the_split(tmp_path: Path) -> None:
    source = make_word(tmp_path / "download")
    first = convert("word", source, tmp_path / "root")
    split = folds(first.folder)
    again = convert("word", source, tmp_path / "root")
    assert not again.conversion.converted and len(again.conversion.unchanged) == 7
    assert folds(again.folder) == split and own(again.folder)["split_source"]


def test_a_bad_validation_case_is_left_out_of_the_split_too(tmp_path: Path) -> None:
    source = make_word(tmp_path / "download")
    (source / "WORD-V0.1.0/imagesVal/word_0005.nii.gz").write_bytes(b"\x1f\x8b truncated")
    result = convert("word", source, tmp_path / "root")
    assert result.conversion.left_out == ("word_0005",) and folds(result.folder)[0]["val"] == ["word_0006"]


def test_without_the_validation_part_there_is_no_official_split_and_test_labels_may_be_missing(tmp_path: Path) -> None:
    source = make_word(tmp_path / "download")
    for part in ("imagesVal", "labelsVal", "labelsTs"):
        shutil.rmtree(source / "WORD-V0.1.0" / part)
    result = convert("word", source, tmp_path / "root")
    assert (
        result.ok and not (result.folder / "splits_final.json").exists() and not (result.folder / "labelsTs").exists()
    )
    assert any("official split is not known" in note for note in result.conversion.notes)
    shutil.rmtree(source / "WORD-V0.1.0/labelsTr")
    with pytest.raises(DataError, match="labelsTr of WORD"):
        convert("word", source, tmp_path / "other")
