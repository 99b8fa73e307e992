from __future__ import annotations

from pathlib import Path

import pytest

from medkd.cli.plan_and_preprocess import main
from medkd.preprocessing.store import CaseStore

from ..preprocessing.builders import make_raw


def test_the_command_plans_preprocesses_and_shows_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_raw(tmp_path)
    assert main(["-d", "1", "-c", "3d_fullres", "-np", "2", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Dataset001_Test" in out and "3d_fullres" in out and "2 × 1 × 1" in out
    assert len(CaseStore(tmp_path / "preprocessed/Dataset001_Test/3d_fullres").cases()) == 4


def test_an_error_is_one_line_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw").mkdir()
    assert main(["-d", "77", "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: Data set '77' was not found") and "Traceback" not in error


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("-np", "0", "must be a whole number of at least 1, found '0'"),
        ("-np", "two", "must be a whole number of at least 1, found 'two'"),
        ("--batch-size", "-1", "found '-1'"),
        ("--gpu-memory", "0", "must be a number above 0, found '0'"),
        ("--gpu-memory", "-8", "found '-8'"),
        ("--gpu-memory", "nan", "found 'nan'"),
        ("--gpu-memory", "much", "found 'much'"),
    ],
)
def test_nonsense_numbers_are_refused(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["-d", "1", option, value])
    assert message in capsys.readouterr().err
