"""The command medkd_predict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medkd.api import find_model
from medkd.cli.predict import main
from medkd.core.errors import RunError
from tests.inference.conftest import make_run, scans

__all__ = ["make_run", "scans"]


def test_a_run_is_found_below_the_root(
    make_run: Callable[..., Path], scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(folds=1)
    arguments = [
        "-i",
        str(scans),
        "-o",
        str(tmp_path / "out"),
        "-m",
        f"1/{run.name}",
        "--root",
        str(tmp_path),
        "--no-tta",
        "--part",
        "2/3",
    ]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("1 scans predicted")
    written = ["case_1.nii.gz", "made_with_2_of_3.jsonl", "predict_settings.json"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == written


def test_a_failed_case_gives_status_1(
    make_run: Callable[..., Path], scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scans / "case_1_0000.nii.gz").write_bytes(b"not an image")
    assert (
        main(
            ["-i", str(scans), "-o", str(tmp_path / "out"), "-m", str(make_run(folds=1)), "--no-tta", "--device", "cpu"]
        )
        == 1
    )
    captured = capsys.readouterr()
    assert "2 scans predicted" in captured.out and "1 failed: case_1" in captured.out
    assert "case_1_0000.nii.gz" in captured.err and "Traceback" not in captured.err


def test_an_unknown_run_names_the_nearest(make_run: Callable[..., Path], tmp_path: Path) -> None:
    make_run()
    with pytest.raises(RunError, match="Did you mean 'plain_unet__3d'"):
        find_model("1/plain_unet_3d", tmp_path)


def test_a_folder_that_is_no_run_is_one_line(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-i", str(scans), "-o", str(tmp_path / "out"), "-m", str(scans)]) == 1
    assert "not a medkd run folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "²/4", "1/²"])
def test_parts_run_from_1(part: str) -> None:
    with pytest.raises(SystemExit):
        main(["-i", "a", "-o", "b", "-m", "c", "--part", part])
