"""The convert command: exit status, printed summary, help."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkd.cli.convert import main
from tests.dataset_conversion.test_msd import make_plain, spoil


def test_the_command_converts_verifies_and_says_what_is_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_plain(tmp_path / "Task05_Liver")
    assert (
        main(
            [
                "msd",
                str(source),
                "-d",
                "5",
                "--root",
                str(tmp_path / "root"),
                "--labels",
                "liver, tumour",
                "--channels",
                "CT",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert (
        "Dataset005_Liver" in out
        and "3 cases converted" in out
        and "3 good cases" in out
        and "next: medkd_plan_and_preprocess -d 5" in out
    )
    assert (tmp_path / "root/raw/Dataset005_Liver/verification_report.json").exists()


def test_the_status_is_1_when_a_case_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_plain(tmp_path / "P")
    spoil(source, "nan")
    assert main(["--root", str(tmp_path / "root"), "msd", str(source), "-d", "5"]) == 1
    assert "left out: p1" in capsys.readouterr().out
    assert (tmp_path / "root/raw/Dataset005_P/dataset.json").exists()


def test_a_users_mistake_is_one_line_without_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["msd", str(tmp_path / "missing"), "-d", "5", "--root", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "does not exist" in err and err.count("\n") == 1


def test_help_lists_the_formats_and_each_says_what_to_download(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in [(["--help"], "msd"), (["msd", "--help"], "medicaldecathlon.com")]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0 and text in capsys.readouterr().out
