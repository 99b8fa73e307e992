"""Recipes of one file name in one root: another one is refused, an edited or copied one goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medkd.cli.reproduce import main
from medkd.reproduction import reproduce
from medkd.reproduction.runner import Outcome
from tests.reproduction.test_reproduce import TOY


class IdleRunner:
    """Does nothing of what it is told."""

    def __init__(self, *arguments: Any) -> None: ...

    def run(self) -> Outcome:
        return Outcome()


@pytest.mark.parametrize("words", [[], ["--engine", "slurm", "--write"]])
def test_a_folder_belongs_to_one_recipe(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "Runner", IdleRunner)
    for name in ("ensure_data", "_refuse_impossible"):
        monkeypatch.setattr(reproduce, name, lambda *arguments: None)
    first, second = tmp_path / "a" / "toy.json", tmp_path / "b" / "toy.json"
    for path in (first, second):
        path.parent.mkdir()
        path.write_text(json.dumps(TOY))
    root = ["--root", str(tmp_path)]
    assert main([str(first), *root, "--status"]) == 0 and not (tmp_path / "reproductions").exists()
    assert main([str(first), *root, *words]) == 0
    edited, other = {"title": "another", "seeds": [0, 1]}, {"dataset": {**TOY["dataset"], "number": 901}}
    for path, changes, status in (
        *((first, edited, 0), (first, other, 1), (first, {}, 0)),
        *((second, {}, 0), (second, {"seeds": [3]}, 0), (second, edited, 1), (second, other, 1)),
    ):
        path.write_text(json.dumps({**TOY, **changes}))
        capsys.readouterr()
        assert main([str(path), *root, "--status"]) == status
        said = capsys.readouterr().err
        assert said.count("\n") == status and ("rename one of the two files" in said) == bool(status)
    assert f"holds the runs of another recipe, {first} ('toy', Dataset900_Phantom), expected those of {second}" in said
