"""``medkd_report``."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkd import api
from medkd.cli.report import main
from tests.evaluation.folders import make_dataset, make_run


def test_writes_the_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(tmp_path, 2)
    make_run(tmp_path, "res_unet__3d_fullres", "res_unet", 1.0, {0: [0, 1]})
    page = tmp_path / "page.html"
    assert main(["4", "--root", str(tmp_path), "-o", str(page), "--fold", "0"]) == 0
    assert str(page) in capsys.readouterr().out
    assert "res_unet" in page.read_text(encoding="utf-8")
    assert main(["4", "--root", str(tmp_path), "--fold", "3"]) == 1
    assert "no run has a fold 3" in capsys.readouterr().err
    assert main(["9", "--root", str(tmp_path)]) == 1


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (["-o", "x.csv"], "names the page"),
        (["--margin", "2"], "The margin is"),
        (["--fold", "3"], "no run has a fold 3"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: list[str],
    text: str,
) -> None:
    make_dataset(tmp_path, 2)
    make_run(tmp_path, "res_unet__3d_fullres", "res_unet", 1.0, {0: [0, 1]})
    monkeypatch.setattr(api, "measure", lambda *_, **__: pytest.fail("measured"))
    assert main(["4", "--root", str(tmp_path), "--measure", *wrong]) == 1
    assert text in capsys.readouterr().err
