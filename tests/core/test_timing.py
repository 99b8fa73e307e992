"""Times that are taken in turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkd.core.errors import DataError
from medkd.core.timing import Spread, Timings, interleaved, readable_seconds


def test_actions_take_turns_after_one_round_that_does_not_count() -> None:
    calls: list[str] = []
    actions = {name: (lambda name=name: calls.append(name)) for name in "ab"}  # type: ignore[misc]
    seconds = interleaved(actions, 3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}
    assert min(min(taken) for taken in seconds.values()) >= 0


def test_a_slow_round_moves_the_spread_and_not_the_median() -> None:
    spread = Spread.of((1.0, 1.1, 9.0, 1.05, 0.95))
    assert (spread.median, spread.count) == (1.05, 5) and spread.low == 1.0 and spread.high == 1.1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0008, "0.8 ms"), (0.045, "45 ms"), (1.13, "1.1 s"), (0.9996, "1000 ms"), (125.2, "2 min 5 s")],
)
def test_times_are_in_units_that_people_read(seconds: float, text: str) -> None:
    assert readable_seconds(seconds) == text


def test_the_file_survives_the_disk_and_a_damaged_one_is_one_sentence(tmp_path: Path) -> None:
    timings = Timings(
        unit="scan", case="a", size=(1, 2, 3), device="cpu", threads=2, settings="none", seconds={"run": (1.0, 2.0)}
    )
    path = timings.save(tmp_path)
    assert Timings.load(tmp_path) == timings and timings.of("other") is None
    path.write_text(path.read_text().replace("[\n      1.0", '[\n      "fast"'))
    with pytest.raises(DataError, match=r"latency\.json.*expected float"):
        Timings.load(tmp_path)
    assert Timings.load(tmp_path / "nowhere") is None
