"""The lists of Decathlon tasks, written on other machines, incomplete or contradictory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset_conversion.decathlon import images_without_label
from tests.dataset_conversion.task_trees import convert, make_task

Listed = list[dict[str, str]]


def edited(task: Path, edit: Callable[[Listed], object]) -> Path:
    path = task / "dataset.json"
    data: dict[str, Any] = json.loads(path.read_text())
    edit(data["training"])
    path.write_text(json.dumps(data))
    return task


@pytest.mark.parametrize(
    "respell",
    [
        lambda name: name.replace("./", "/data/Task01_Brain/"),
        lambda name: name.replace("./", "D:\\Task01_Brain\\").replace("/", "\\"),
        lambda name: name.replace("_", "%5F"),
        lambda name: name.upper(),
        lambda name: name.replace(".nii.gz", ".nii"),
    ],
)
def test_a_list_means_the_same_on_any_machine(tmp_path: Path, respell: Callable[[str], str]) -> None:
    def change(entries: Listed) -> None:
        for entry in entries:
            entry |= {key: respell(name) for key, name in entry.items()}

    report = convert(edited(make_task(tmp_path / "T"), change), tmp_path / "root").conversion
    assert report.ok and len(report.converted) == 4 and not report.warnings, report.text()


def test_entries_that_are_not_there_or_contradict_each_other_are_named(tmp_path: Path) -> None:
    task = make_task(tmp_path / "T", cases=4)
    (task / "labelsTr/BRATS_003.nii.gz").unlink()

    def swap(entries: Listed) -> None:
        entries[1]["image"] = entries[0]["image"]

    report = convert(edited(task, swap), tmp_path / "root").conversion
    assert report.converted == ("BRATS_002", "BRATS_004") and report.left_out == ("BRATS_001", "BRATS_003")
    text = " ".join(finding.text() for finding in report.problems)
    assert "beside another pair" in text and "labelsTr/BRATS_003.nii.gz" in text


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr", "imagesTs"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_link_to_nothing_and_a_pipe_are_errors(tmp_path: Path, folder: str, listed: bool) -> None:
    task = make_task(tmp_path / "T", channels=1)
    if not listed:
        (task / "dataset.json").unlink()
    name = "BRATS_003" if folder == "imagesTs" else "BRATS_000"
    path = task / folder / f"{name}.nii.gz"
    for make, text in ((lambda: path.symlink_to("nowhere"), "a link to nowhere"), (lambda: os.mkfifo(path), "pipe")):
        path.unlink()
        make()
        report = convert(task, tmp_path / f"root {text}").conversion
        assert report.left_out == (name,) and text in report.problems[0].text()


def test_four_digits_are_a_channel_only_where_the_others_are_there(tmp_path: Path) -> None:
    for name in ("word_0001", "word_0002", "a_0000", "a_0001", "b_0000", "c_0005"):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"")
    found = {
        case: [path.name[:-7] for path in paths]
        for case, paths in images_without_label(sorted(tmp_path.iterdir()), 2).items()
    }
    assert found == {
        "word_0001": ["word_0001"],
        "word_0002": ["word_0002"],
        "a": ["a_0000", "a_0001"],
        "b": ["b_0000"],
        "c_0005": ["c_0005"],
    }
