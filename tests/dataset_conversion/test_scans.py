"""Scans without labels, converted for a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_conversion import CONVERTERS, ConversionOptions, convert_dataset
from medkd.cli.convert import main
from medkd.core.dataset import DatasetDescription, labelled_cases, unlabelled_cases
from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from tests.training.unlabelled_builders import write_scan

MODEL = DatasetDescription(channel_names=("CT",), labels=LabelSpec.from_names(["liver", "spleen"]), num_training=0)


def _options(model: DatasetDescription = MODEL, **changes: object) -> ConversionOptions:
    return ConversionOptions(settings={"like": model}, **changes)  # type: ignore[arg-type]


def test_volumes_become_a_data_set_without_labels(tmp_path: Path) -> None:
    for number in range(3):
        write_scan(tmp_path / "scans" / f"p{number}.nii.gz", number)
    result = convert_dataset("folder", tmp_path / "scans", 7, root=tmp_path / "root", options=_options())
    assert result.ok, result.conversion.text() + result.verification.text()
    description = DatasetDescription.load(result.folder / "dataset.json")
    assert description.labels == MODEL.labels and description.channel_names == ("CT",)
    assert labelled_cases(result.folder, description) == []
    assert [case.case for case in unlabelled_cases(result.folder, description)] == ["p0", "p1", "p2"]
    again = convert_dataset("folder", tmp_path / "scans", 7, root=tmp_path / "root", options=_options())
    assert again.conversion.unchanged == ("p0", "p1", "p2")


def test_scans_that_cannot_have_the_models_channels_are_left_out(tmp_path: Path) -> None:
    write_scan(tmp_path / "scans" / "p0.nii.gz", 0)
    two = DatasetDescription(channel_names=("T1", "T2"), labels=MODEL.labels, num_training=0)
    with pytest.raises(DataError, match="expected 2 channels, found 1"):
        convert_dataset("folder", tmp_path / "scans", 7, root=tmp_path / "root", options=_options(two))


def test_what_is_no_model_no_scan_or_a_second_opinion_is_refused(tmp_path: Path) -> None:
    convert = CONVERTERS["folder"].convert
    (tmp_path / "scans").mkdir()
    with pytest.raises(DataError, match="give it with --like"):
        convert(tmp_path / "scans", tmp_path / "out", ConversionOptions())
    with pytest.raises(DataError):
        convert(tmp_path / "scans", tmp_path / "out", _options())
    with pytest.raises(DataError, match="leave out --labels"):
        convert(tmp_path / "scans", tmp_path / "out", _options(labels=("a",)))


def test_the_command_takes_labels_and_channels_from_a_model(real_data: Path, tmp_path: Path) -> None:
    model = real_data / "nnunet_model_strong"
    write_scan(tmp_path / "scans" / "p0.nii.gz", 0)
    found = next(path.parent for path in sorted(model.rglob("plans.json")))
    arguments = ["folder", str(tmp_path / "scans"), "-d", "8", "--like", str(found), "--root", str(tmp_path / "root")]
    assert main(arguments) == 0
    description = DatasetDescription.load(tmp_path / "root" / "raw" / "Dataset008_scans" / "dataset.json")
    assert [name.casefold() for name, _ in description.labels.foreground] == ["anterior", "posterior"]
