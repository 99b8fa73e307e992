"""Cityscapes: ids become train ids, the published parts stay, what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_conversion.cityscapes import CLASSES, train_values
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.io.volumes import read_label
from tests.dataset_conversion.trees import convert, folds, make_cityscapes

# id → train id, from the benchmark's table of labels; 255 is ignored
BENCHMARK = {
    **{7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14},
    **{28: 15, 31: 16, 32: 17, 33: 18},
}


def test_every_id_has_the_benchmarks_train_id_plus_one_or_is_ignored() -> None:
    for identity in range(256):
        expected = BENCHMARK.get(identity, 255)
        assert train_values(np.array([identity]))[0] == (20 if expected == 255 else expected + 1)
    assert list(CLASSES) == sorted(BENCHMARK, key=BENCHMARK.__getitem__)


def test_scenes_classes_and_parts_are_kept(tmp_path: Path) -> None:
    source = make_cityscapes(tmp_path / "cityscapes")
    result = convert("cityscapes", source, tmp_path / "root")
    assert result.ok, result
    description = DatasetDescription.load(result.folder / "dataset.json")
    assert (description.num_training, description.labels.num_outputs, description.labels.ignore) == (8, 20, 20)
    assert (description.labels.foreground[0][0], description.labels.foreground[18][0]) == ("road", "bicycle")
    assert (description.file_ending, len(description.channel_names)) == (".png", 3)
    (fold,) = folds(result.folder)
    assert len(fold["train"]) == 6 and fold["val"] == ["munster_000006_000019", "munster_000007_000019"]
    assert [p.name for p in (result.folder / "imagesTs").iterdir()] == ["bonn_000008_000019_0000.png"]
    assert not (result.folder / "labelsTs").exists()
    case = "aachen_000001_000019"
    ids = np.array(Image.open(source / f"gtFine/train/aachen/{case}_gtFine_labelIds.png"))
    label = read_label(result.folder / f"labelsTr/{case}.png").array[0]
    for row, column in np.ndindex(ids.shape):
        expected = BENCHMARK.get(int(ids[row, column]), 255)
        assert label[row, column] == (20 if expected == 255 else expected + 1)
    written = result.folder / f"imagesTr/{case}_0000.png"
    assert written.read_bytes() == (source / f"leftImg8bit/train/aachen/{case}_leftImg8bit.png").read_bytes()


def test_a_second_call_converts_nothing_again(tmp_path: Path) -> None:
    source = make_cityscapes(tmp_path / "cityscapes", 2, 1, 0)
    convert("cityscapes", source, tmp_path / "root")
    report = convert("cityscapes", tmp_path, tmp_path / "root").conversion  # from above, too
    assert (len(report.converted), len(report.unchanged)) == (0, 3)


def test_what_does_not_fit_is_named_and_left_out(tmp_path: Path) -> None:
    source = make_cityscapes(tmp_path / "cityscapes", 5, 1, 0)
    truths = sorted((source / "gtFine/train/aachen").glob("*labelIds.png"))
    images = sorted((source / "leftImg8bit/train/aachen").glob("*.png"))
    Image.fromarray(np.full((48, 96), 99, np.uint8)).save(truths[0])
    Image.fromarray(np.zeros((24, 96), np.uint8)).save(truths[1])
    truths[2].unlink()
    images[3].unlink()
    report = convert("cityscapes", source, tmp_path / "root").conversion
    found = {finding.case: finding.found for finding in report.problems}
    assert "the value 99" in found["aachen_000000_000019"] and "96 x 24" in found["aachen_000001_000019"]
    assert set(found) == {f"aachen_00000{i}_000019" for i in range(4)} and len(report.converted) == 2


def test_another_tree_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "leftImg8bit").mkdir()
    with pytest.raises(DataError, match="expected the folders leftImg8bit and gtFine"):
        convert("cityscapes", tmp_path, tmp_path / "root")
    (tmp_path / "gtFine").mkdir()
    with pytest.raises(DataError, match="leftImg8bit/train/CITY"):
        convert("cityscapes", tmp_path, tmp_path / "root")
