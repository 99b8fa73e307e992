"""BTCV as downloaded: numbers with gaps, differently named labels, MONAI's split."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medkd.cli.convert import main
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.io.volumes import write_volume
from tests.dataset_conversion.trees import SHAPE, SPACING, convert, folds, make_btcv, own, tree

TRAINING = "Abdomen/RawData/Training"


def monai_json(path: Path, train: tuple[int, ...] = (1, 2, 10, 21, 23)) -> Path:
    def entry(number: int) -> dict[str, str]:
        return {"image": f"imagesTr/img{number:04d}.nii.gz", "label": f"labelsTr/label{number:04d}.nii.gz"}

    content = {
        "training": [entry(n) for n in train],
        "validation": [entry(35)],
        "test": ["imagesTs/img0061.nii.gz"],
    }
    path.write_text(json.dumps(content))
    return path


def test_every_scan_finds_its_label_and_the_files_are_taken_over_unchanged(tmp_path: Path) -> None:
    source = make_btcv(tmp_path / "download")
    before = tree(source)
    result = convert("btcv", source, tmp_path / "root")
    assert result.ok and result.folder.name == "Dataset007_BTCV"
    description = DatasetDescription.load(result.folder / "dataset.json")
    assert description.num_training == 6 and description.channel_names == ("CT",)
    assert [name for name, _ in description.labels.foreground][:5] == [
        "spleen",
        "right_kidney",
        "left_kidney",
        "gallbladder",
        "esophagus",
    ]
    for number in (1, 2, 10, 21, 22, 35):
        for ours, theirs in (
            (f"imagesTr/img{number:04d}_0000", f"img/img{number:04d}"),
            (f"labelsTr/img{number:04d}", f"label/label{number:04d}"),
        ):
            assert (result.folder / f"{ours}.nii.gz").read_bytes() == (
                source / TRAINING / f"{theirs}.nii.gz"
            ).read_bytes()
    assert [p.name for p in (result.folder / "imagesTs").iterdir()] == ["img0061_0000.nii.gz"]
    assert tree(source) == before
    assert not (result.folder / "splits_final.json").exists() and own(result.folder) == {"format": "btcv"}


@pytest.mark.parametrize("start", ["Abdomen/RawData", TRAINING])
def test_any_folder_above_the_scans_will_do(tmp_path: Path, start: str) -> None:
    result = convert("btcv", make_btcv(tmp_path / "download") / start, tmp_path / "root")
    assert result.ok and len(result.conversion.converted) == 7


def test_monais_split_becomes_fold_0_and_the_case_that_is_not_there_is_named(tmp_path: Path) -> None:
    source = make_btcv(tmp_path / "download")
    monai_json(source / "Abdomen/RawData/dataset_0.json")
    result = convert("btcv", source / "Abdomen/RawData", tmp_path / "root")
    assert folds(result.folder) == [{"train": ["img0001", "img0002", "img0010", "img0021"], "val": ["img0035"]}]
    assert own(result.folder)["split_source"] == "training and validation lists of dataset_0.json"
    assert result.conversion.left_out == ("img0023",) and not result.ok
    assert "'imagesTr/img0023.nii.gz', which is no case" in result.conversion.problems[0].text()
    assert any("4 + 1; 1 cases are in no fold" in note for note in result.conversion.notes)
    given = convert("btcv", source, tmp_path / "other", settings={"split": str(monai_json(tmp_path / "mine.json"))})
    assert folds(given.folder) == folds(result.folder)


def test_the_command_takes_the_split_and_refuses_it_where_it_means_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, split = make_btcv(tmp_path / "download"), monai_json(tmp_path / "mine.json", (1, 2, 10, 21))
    root = ["--root", str(tmp_path / "root")]
    assert main(["btcv", str(source), "-d", "10", *root, "--split", str(split)]) == 0
    assert folds(tmp_path / "root/raw/Dataset010_BTCV")[0]["val"] == ["img0035"]
    with pytest.raises(SystemExit):
        main(["word", str(source), "-d", "11", *root, "--split", str(split)])
    assert "--split" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["btcv", "word", "brats", "synapse_slices", "acdc_h5"])
def test_help_says_where_to_download_how_large_it_is_and_under_which_terms(
    format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([format, "--help"])
    text = capsys.readouterr().out
    assert "https://" in text and "licence:" in text and "source:" in text and ("GB" in text or "MB" in text)


def test_a_users_own_split_is_kept(tmp_path: Path) -> None:
    source = make_btcv(tmp_path / "download")
    folder = convert("btcv", source, tmp_path / "root").folder
    mine = '[{"train": ["img0001"], "val": ["img0002"]}]'
    (folder / "splits_final.json").write_text(mine)
    result = convert(
        "btcv", source, tmp_path / "root", settings={"split": str(monai_json(tmp_path / "dataset_0.json"))}
    )
    assert (folder / "splits_final.json").read_text() == mine and "split_source" not in own(folder)
    assert any("was kept" in note for note in result.conversion.notes)


def test_a_missing_label_a_foreign_value_and_another_grid_are_named_and_the_rest_is_converted(tmp_path: Path) -> None:
    source = make_btcv(tmp_path / "download")
    labels = source / TRAINING / "label"
    (labels / "label0002.nii.gz").unlink()
    write_volume(labels / "label0010.nii.gz", np.full(SHAPE, 14, np.uint8), Geometry.from_spacing(SHAPE, SPACING))
    write_volume(labels / "label0021.nii.gz", np.ones(SHAPE, np.uint8), Geometry.from_spacing(SHAPE, (3.0, 0.8, 0.9)))
    result = convert("btcv", source, tmp_path / "root")
    assert not result.ok and result.verification.ok
    assert result.conversion.left_out == ("img0002", "img0010", "img0021")
    texts = [finding.text() for finding in result.conversion.problems]
    assert "label0002.nii.gz" in texts[0] and "also 14" in texts[1] and "spacing" in texts[2]


def test_a_folder_without_the_layout_is_refused_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "x/photos").mkdir(parents=True)
    with pytest.raises(DataError, match=r"Training/img .* found photos"):
        convert("btcv", tmp_path / "x", tmp_path / "root")
    (tmp_path / "RawData.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="unpack"):
        convert("btcv", tmp_path / "RawData.zip", tmp_path / "root")
    bad = tmp_path / "dataset_0.json"
    bad.write_text('{"training": 3}')
    with pytest.raises(DataError, match="'training' and 'validation'"):
        convert("btcv", make_btcv(tmp_path / "b", numbers=(1,)), tmp_path / "root", settings={"split": str(bad)})
    assert not list((tmp_path / "root").rglob("*"))
