"""Prints at the end of a run how many faults were tried and held, per group, with any number of test processes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.faults.tally import PROPERTY

_tried: Counter[str] = Counter()
_lost: Counter[str] = Counter()
_left: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def _drawn_at_the_end() -> Iterator[None]:
    """The moments at which a command changes the disk must not depend on the clock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medkd.training.logs._PAUSE", math.inf)
        yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect the counts that a test handed over."""
    if report.when != "call":
        return
    for name, value in report.user_properties:
        if name == PROPERTY:
            group, tried, lost, left = value
            _tried[group] += tried
            _lost[group] += lost
            _left[group] += left


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if not _tried:
        return
    terminalreporter.section("faults: held of tried")
    for group in sorted(_tried):
        held = _tried[group] - _lost[group]
        swept = f"   temporary files left for the next run: {_left[group]}" if _left[group] else ""
        terminalreporter.write_line(f"{group:40} {held:6d} of {_tried[group]:6d}{swept}")
    total, lost = sum(_tried.values()), sum(_lost.values())
    terminalreporter.write_line(f"{'all':40} {total - lost:6d} of {total:6d}")
