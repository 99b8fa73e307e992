"""``medkd_evaluate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import medkd
from medkd.cli.evaluate import main
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.evaluation.segmentation.results import Summary
from tests.evaluation.folders import LABELS, reference, spoiled, write_map


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    for i in range(2):
        write_map(tmp_path / "ref" / f"c{i}.nii.gz", reference(i))
        write_map(tmp_path / "pred" / f"c{i}.nii.gz", spoiled(reference(i), 1.0, i))
    return str(tmp_path / "pred"), str(tmp_path / "ref")


def test_prints_a_table_and_writes_the_summary(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                *folders,
                "--labels",
                "liver, spleen",
                "-o",
                str(tmp_path / "out.json"),
                "--nsd-tolerance",
                "1",
                "--hd95",
                "pooled",
            ]
        )
        == 0
    )
    summary = Summary.load(tmp_path / "out.json")
    assert (summary.nsd_tolerance_mm, summary.hd95_definition) == (1.0, "pooled")
    text = capsys.readouterr().out
    assert f"{summary.interval('Dice', 0).mean:.3f}" in text
    assert "foreground mean" in text


def test_finds_dataset_json_beside_the_references(folders: tuple[str, str], tmp_path: Path) -> None:
    DatasetDescription(channel_names=("CT",), labels=LABELS, num_training=2).save(tmp_path / "dataset.json")
    assert main([*folders]) == 0
    assert [n for n, _ in Summary.load(tmp_path / "pred" / "summary.json").structures] == ["liver", "spleen"]


def test_labels_in_any_order_in_dataset_json_give_the_same_table(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*folders, "--labels", "liver,spleen", "-o", str(tmp_path / "s.json")]) == 0
    expected = capsys.readouterr().out
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"spleen": 2, "background": 0, "liver": 1},
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert main([*folders, "-o", str(tmp_path / "s.json")]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("detection", ["--legacy"]),
        ("detection", ["--hd95", "max"]),
        ("detection", ["--nsd-tolerance", "3"]),
        ("detection", ["--file-ending", ".nii.gz"]),
        ("segmentation", ["--hit", "0.5"]),
        ("segmentation", ["--exclude", "liver"]),
    ],
)
def test_options_of_the_other_task_are_refused(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, option: list[str]
) -> None:
    if kind == "detection":
        (tmp_path / "pred" / "predictions.json").touch()
    assert main([*folders, "--labels", "liver,spleen", *option]) == 1
    other = "segmentation" if kind == "detection" else "detection"
    assert f"{option[0]} is for {other}, but {folders[0]} is for {kind}; leave it out." in capsys.readouterr().err


def test_errors_are_one_line_with_status_1(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*folders]) == 1
    assert "--dataset-json" in capsys.readouterr().err
    assert main([*folders, "--labels", ","]) == 1
    assert main([*folders, "--labels", "liver"]) == 1
    assert "holds the value 2" in capsys.readouterr().err
    (tmp_path / "pred" / "c1.nii.gz").unlink()
    assert main([*folders, "--labels", "liver,spleen"]) == 1
    assert "c1" in capsys.readouterr().err
    assert main([*folders, "--labels", "liver,spleen", "--allow-missing"]) == 0


def test_further_metrics_by_name_and_an_unknown_one_is_one_sentence(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["--labels", "liver,spleen", "-o", str(tmp_path / "out.json")]
    assert main([*folders, *names, "--metrics", "asd, ASSD,Dice"]) == 0
    summary = Summary.load(tmp_path / "out.json")
    text = capsys.readouterr().out
    assert summary.further == ("ASD", "ASSD")
    assert "ASD mm" in text and f"{summary.interval('ASSD', 0).mean:.2f}" in text
    assert main([*folders, *names, "--metrics", "ASD,volume"]) == 1
    assert "--metrics" in (said := capsys.readouterr().err) and "found volume" in said


def test_the_place_is_looked_at_before_anything_is_scored(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "file").touch()
    wanted = [*folders, "--labels", "liver,spleen", "-o"]
    assert main([*wanted, str(tmp_path / "lab")]) == 0
    assert Summary.load(tmp_path / "lab" / "summary.json").structures and "foreground mean" in capsys.readouterr().out
    monkeypatch.setattr("medkd.api.evaluate", lambda *_, **__: pytest.fail("scored in vain"))
    assert main([*wanted, str(tmp_path / "file" / "out.json")]) == 1
    assert f"{tmp_path / 'file'} is no folder; choose" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda *_: False)  # of a share that is mounted to be read
    assert main([*folders, "--labels", "liver,spleen"]) == 1
    assert f"{tmp_path / 'pred'} may not be written to; choose" in capsys.readouterr().err


def test_scores_that_cannot_be_written_are_shown(
    folders: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise DataError("Cannot write it: No space left on device.")

    monkeypatch.setattr(Summary, "save", full)
    assert main([*folders, "--labels", "liver,spleen"]) == 1
    said = capsys.readouterr()
    assert "foreground mean" in said.out and "No space left" in said.err and "written" not in said.out


def test_lists_and_endings_are_what_they_look_like(
    folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="labels: expected a list of names, found 'liver'"):
        medkd.evaluate(*folders, labels="liver")
    with pytest.raises(DataError, match="metrics: expected a list of names, found 'ASD'"):
        medkd.evaluate(*folders, labels=["liver", "spleen"], metrics="ASD")
    assert main([*folders, "--labels", "liver,liver"]) == 1
    assert "--labels: expected each name once, found 'liver' twice" in capsys.readouterr().err
    assert main([*folders, "--labels", "liver,spleen", "--file-ending", "nii.gz"]) == 1
    assert "--file-ending: expected an ending with its dot" in capsys.readouterr().err
