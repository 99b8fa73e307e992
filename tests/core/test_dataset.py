"""What is wrong in a ``dataset.json`` is one sentence that names file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medkd.core.dataset import DatasetDescription, training_cases
from medkd.core.dataset_keys import check_meant
from medkd.core.errors import DataError
from medkd.io.verify import verify_dataset
from medkd.preprocessing.normalisation import scheme_of

GOOD: dict[str, Any] = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "a": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}
WRONG: list[tuple[str, Any, str]] = [
    ("channel_names", {"T1": 0}, "by its number"),
    ("channel_names", "MR", "found 'MR'"),
    ("channel_names", {}, "found {}"),
    ("channel_names", {"0": None}, "by its number"),
    ("channel_names", [1, 2], "found [1, 2]"),
    ("channel_names", 5, "found 5"),
    ("labels", ["background", "a"], "an object from names to values, found ['background', 'a']"),
    ("labels", {"background": 0, "a": "1"}, "label 'a' must be an integer or a list of integers, found '1'"),
    ("labels", {"background": 0, "a": 1, "ignore": [2, 3]}, "label 'ignore' must be one integer, found [2, 3]"),
    ("numTraining", "abc", "the number of training cases, found 'abc'"),
    ("numTraining", -1, "found -1"),
    ("file_ending", 5, "found 5"),
    ("file_ending", None, "found None"),
    ("file_ending", "", "found ''"),
    ("medkd", "x", "an object, found 'x'"),
    ("patients", ["a"], "an object, found ['a']"),
    ("patients", {"c0": ["p"]}, "found ['p'] for c0"),
]
WRONG_FILES: list[Any] = [
    ["c0"],
    {"c0": "a.nii.gz"},
    {"c0": {"images": "a.nii.gz", "label": "b"}},
    {"c0": {"images": ["a"]}},
]


def _write(folder: Path, **keys: object) -> Path:
    (folder / "dataset.json").write_text(json.dumps({**GOOD, **keys}))
    return folder / "dataset.json"


@pytest.mark.parametrize(("key", "value", "found"), WRONG)
def test_a_key_of_the_wrong_form_is_named_and_verification_reports_it(
    tmp_path: Path, key: str, value: object, found: str
) -> None:
    path = _write(tmp_path, **{key: value})
    with pytest.raises(DataError) as caught:
        DatasetDescription.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and found in text and "\n" not in text
    assert f"'{key}'" in text or key == "labels"
    report = verify_dataset(tmp_path)
    assert len(report.problems) == 1 and found in report.problems[0].text()


@pytest.mark.parametrize("order", ["12", 3, ["1"]])
def test_a_region_order_of_the_wrong_form_is_named(tmp_path: Path, order: object) -> None:
    path = _write(tmp_path, labels={"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=order)
    with pytest.raises(DataError, match=r"'regions_class_order' must be"):
        DatasetDescription.load(path)


@pytest.mark.parametrize("files", WRONG_FILES)
def test_a_list_of_files_of_the_wrong_form_is_named(tmp_path: Path, files: object) -> None:
    description = DatasetDescription.load(_write(tmp_path, dataset=files))
    with pytest.raises(DataError, match=r"dataset\.json: 'dataset' must .*found"):
        training_cases(tmp_path, description)
    assert len(verify_dataset(tmp_path).problems) == 1


def test_what_is_right_is_read(tmp_path: Path) -> None:
    listed = {"c0": {"images": ["a.nii.gz", "b.nii.gz"], "label": "c.nii.gz"}}
    read = DatasetDescription.load(
        _write(tmp_path, dataset=listed, medkd={"patients": {"c0": "p", "c1": 7}, "source": "s"})
    )
    assert (read.channel_names, read.num_training, read.file_ending) == (("T1", "T2"), 1, ".nii.gz")
    assert read.patients == {"c0": "p", "c1": "7"} and read.extra["medkd"] == {"source": "s"}
    assert training_cases(tmp_path, read)[0].images == (tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    bare = {
        "modality": ["MR"],
        "labels": GOOD["labels"],
        "file_ending": ".nrrd",
        "patients": {"c0": "p"},
        "numTraining": None,
    }
    named = DatasetDescription.from_json(bare, "here")
    assert (named.channel_names, named.num_training, named.patients) == (("MR",), 0, {"c0": "p"})


def test_channels_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = {str(i): f"c{i}" for i in reversed(range(11))}
    assert DatasetDescription.load(_write(tmp_path, channel_names=names)).channel_names == tuple(
        f"c{i}" for i in range(11)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_names": {"0": "T1", "2": "T2"}}, "must number the channels one after another"),
        ({"channel_names": {"0": "T1", "1": "T2"}, "modality": {"0": "T2", "1": "T1"}}, "leave out one of them"),
        ({"channel_names": {"0": "T1", "00": "T2"}}, "must number the channels one after another"),
        ({"labels": {"background": 0, "liver": 1, "Ignore": 2}}, "expected the label 'ignore' for places without"),
        ({"labels": {"background": 0, "liver": 1, "ignore ": 2}}, "expected the label 'ignore' for places without"),
        (
            {"labels": {"background": 0, "whole": [1, 2, 2], "core": [2]}, "regions_class_order": [1, 2]},
            r"label 'whole' must hold each value once, found \[1, 2, 2\]",
        ),
    ],
)
def test_what_is_hardly_meant_is_refused_of_new_data_and_read_of_older_models(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = _write(tmp_path, **changes)
    assert DatasetDescription.load(file).labels.ignore is None  # as 0.2.0 read it
    with pytest.raises(DataError, match=message) as caught:
        check_meant(file)
    assert "\n" not in str(caught.value)
    (finding,) = verify_dataset(file.parent).problems
    assert finding.found == str(caught.value).rstrip(".")


def test_channels_may_be_numbered_from_one_and_labels_be_ignored(tmp_path: Path) -> None:
    labels = {"background": 0, "liver": 1, "ignore": 2}
    file = _write(tmp_path, channel_names={"2": "T2", "1": "T1"}, modality=["MR", "MR"], labels=labels)
    check_meant(file)
    found = DatasetDescription.load(file)
    assert found.channel_names == ("T1", "T2") and found.labels.ignore == 2


def test_a_blank_around_a_channels_name_is_no_part_of_it() -> None:
    assert (scheme_of(" CT "), scheme_of("ct"), scheme_of("MR")) == ("ct", "ct", "zscore")
