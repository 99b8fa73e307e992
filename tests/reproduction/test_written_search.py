"""A search whose job arrays were written, task by task to its student and the whole table, in this process."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medkd.cli.overview import main as medkd
from medkd.cli.reproduce import main
from medkd.core.run import RunDescription
from medkd.core.serial import load
from medkd.reproduction import reproduce, search
from medkd.reproduction.engines import Needs, Order
from tests.reproduction.test_recipe import recipe
from tests.training.builders import make_dataset


@dataclass
class Ended:
    """A command that was run."""

    code: int
    ticket: str = ""

    def poll(self) -> int:
        return self.code


class HereEngine:
    """Runs commands at once in this process; the data are prepared."""

    def __init__(self, name: str, needs: Needs) -> None: ...

    def free(self) -> int:
        return 1

    def find(self, ticket: str) -> None: ...

    def stop(self) -> None: ...

    def begin(self, orders: Sequence[Order]) -> list[Ended]:
        return [Ended(self._run(order)) for order in orders]

    def _run(self, order: Order) -> int:
        order.output.parent.mkdir(parents=True, exist_ok=True)
        words = order.command[order.command.index("medkd") + 1 :]
        with order.output.open("w") as output, redirect_stdout(output):
            return 0 if words[0] == "plan_and_preprocess" else medkd(words)


def pretended_trial(self: Any, number: int, parameters: Any) -> search.Trial:
    return search.Trial(parameters=parameters, scores=(0.5,), score=0.5 - abs(number - 1) / 10)


def tasks(script: Path) -> list[list[str]]:
    """The words of ``medkd_reproduce`` of each task of an array."""
    text = script.read_text()
    runs = text.partition("runs=(\n")[2].partition("\n)")[0].split()
    words = shlex.split(text.partition(" -m medkd reproduce ")[2])
    return [[run if "SLURM_ARRAY_TASK_ID" in word else word for word in words] for run in runs]


@pytest.mark.slow
def test_a_written_search_comes_to_its_student_and_the_whole_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="the extra tune is not installed")
    make_dataset(tmp_path)
    way = {"parameters": {"kd.temperature": [1, 8, "log"]}, "trials": 3}
    content = recipe(
        dataset={"number": 900, "name": "Boxes", "format": "msd"},
        settings={"epochs": 1, "iterations_per_epoch": 1, "workers": 0, "device": "cpu", "configuration": "3d_fullres"},
        folds=["0"],
        teachers={"large": {"network": "plain_unet"}},
        students={"tiny": {"network": "plain_unet"}},
        methods={"found": {"method": "kd", "search": way}},
    )
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(content))
    monkeypatch.setattr(reproduce, "make_engine", HereEngine)
    monkeypatch.setattr(search._Trainer, "trial", pretended_trial)
    write = [str(path), "--root", str(tmp_path), "--engine", "slurm", "--write"]
    assert main(write) == 0
    *arrays, submit = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.name for file in arrays] == ["01_prepare.sh", "02_search_teacher.sh", "03_student.sh"]
    assert [line.rpartition(" ")[2] for line in submit.read_text().splitlines() if "sbatch" in line] == [
        f"{array.name})" for array in arrays
    ]
    for array in arrays:
        assert [main(words) for words in tasks(array)] == [0] * len(tasks(array))
    (best,) = (tmp_path / "reproductions" / "toy" / "searches").glob("*/best.json")
    found = load(search.Best, best)
    (run,) = (tmp_path / "results").glob("*/*__toy-tiny-found-s0/run.json")
    assert found.trial == 2
    told = {name: str(value) for name, value in found.parameters.items()}
    assert load(RunDescription, run).method_parameters == told
    rows = json.loads((best.parents[2] / "table.json").read_text())["rows"]
    assert [(row["teacher"], row["method"], row["runs"], row["of"]) for row in rows] == [
        ("large", None, 1, 1),
        ("large", "found", 1, 1),
    ]
    assert all("Dice" in row for row in rows)
    capsys.readouterr()
    assert main(write) == 0 and capsys.readouterr().out == "nothing is left to do\n"
