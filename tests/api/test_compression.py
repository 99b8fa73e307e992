"""What ``medkd_compress`` says of its table and of the time that is left."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import medkd.api.compress_work as compressing
from medkd.api.compress import _time_left
from medkd.api.compression import CompressedRow, Compression, Estimate

NAME = "Dataset900_Boxes"


def _row(run: str, parameters: int, within: str | None) -> CompressedRow:
    dice = Estimate(mean=0.8, low=0.7, high=0.9, cases=20)
    return CompressedRow(
        run=run,
        role="student" if within else "teacher",
        width_divisor=4,
        parameters=parameters,
        gflops=1.0,
        seconds=0.5,
        dice=dice,
        difference=dice if within else None,
        within=within,
    )


@pytest.mark.parametrize(
    ("answers", "helps", "helps_not"),
    [
        (("few", "few"), ("at least 6 are needed", "Label more"), ("--tolerance", "Train longer", "--sizes")),
        (("few", "nothing"), ("at least 6 are needed",), ("--tolerance",)),
        (("nothing", "nothing"), ("Train longer", "--sizes"), ("--tolerance", "are needed")),
        (("open", "no"), ("Train longer", "--sizes", "--tolerance"), ("are needed",)),
        (("open", "few"), ("Train longer",), ("are needed",)),
    ],
)
def test_the_advice_helps_against_what_is_wrong(
    answers: tuple[str, ...], helps: tuple[str, ...], helps_not: tuple[str, ...]
) -> None:
    rows = (_row("t", 1000, None), *(_row(f"s{number}", 62, answer) for number, answer in enumerate(answers)))
    told: dict[str, Any] = {"dataset": NAME, "teacher": "MODEL", "fold": "0", "device": "cpu", "report": "report.html"}
    advice = Compression(tolerance=0.01, rows=rows, recommended=None, **told).advice()
    assert advice.startswith("recommended: none; ") and "\n" not in advice
    assert all(text in advice for text in helps) and not any(text in advice for text in helps_not)


def test_the_time_that_is_left_is_that_of_whole_trainings_and_no_bound(tmp_path: Path) -> None:
    """The log's seconds leave out start, validation and scoring."""
    (tmp_path / "log.jsonl").write_text('{"epoch": 0, "seconds": 15.8, "terms": {}}\n')
    work: Any = SimpleNamespace(students=lambda: [None], is_trained=lambda _: True, folder=lambda _: tmp_path)
    steps = [compressing.Step("a", lambda: False, lambda: None, trains=True)] * 2
    told = [_time_left(steps, work, taken) for taken in ([86.0, 40.0], [])]
    assert "trainings left: 2, about 2 min 52 s if each takes as long" in told[0]
    assert "about 31.6 s for their epochs, scoring not counted" in told[1]
    assert not any("at most" in text for text in told)


def test_the_advice_names_the_run_and_what_it_saves() -> None:
    found = Compression(
        dataset=NAME,
        teacher="MODEL",
        fold="0",
        tolerance=0.01,
        rows=(_row("t", 1000, None), _row("s", 62, "yes")),
        recommended="s",
        device="cpu",
        report="report.html",
    )
    assert found.advice() == "recommended: s (1/4 of the channels, 6.2 % of the teacher's parameters)"
    assert found.lines()[0].split() == [
        "parameters",
        "GFLOPs",
        "a",
        "scan",
        "(cpu)",
        "Dice",
        "against",
        "teacher",
        "within",
    ]
