"""A command that is struck at any moment and run again ends like an unbroken one, and leaves nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.killing import Fault, run_until
from tests.faults.stages import STAGES, Stage
from tests.faults.tally import Tally, share_of
from tests.faults.trees import differing, digests, leftovers

# how many moments each fault strikes at where not all are tried
_SMALL: dict[Fault, int] = {
    "kill": 4,
    "terminate": 1,
    "interrupt": 1,
    "disk full": 2,
    "read-only": 1,
    "no permission": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name.replace(", ", "-"))
def test_struck_and_run_again_ends_like_unbroken(stage: Stage, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    start, work = tmp_path / "start", tmp_path / "work"
    stage.prepare(start)
    shutil.copytree(start, work, symlinks=True)
    unbroken = run_until(stage.command, stage.line(work), work)
    expected = digests(work / stage.output)
    assert unbroken.status == 0 and expected, f"the unbroken run: {unbroken}"
    for fault, small in _SMALL.items():
        tally = Tally(f"{fault}: {stage.name}", 0, [])
        for moment in share_of(range(unbroken.changes), small):
            shutil.rmtree(work)
            shutil.copytree(start, work, symlinks=True)
            tally.check(*_strike(stage, work, moment, fault, expected))
        tally.finish(request)


def _strike(stage: Stage, work: Path, moment: int, fault: Fault, expected: dict[str, str]) -> tuple[bool, str]:
    """Whether a fault is held, and what happened."""
    struck = run_until(stage.command, stage.line(work), work, moment, fault)
    # what has not begun has nothing to continue
    again = stage.again if (work / stage.output).exists() else ()
    mended = run_until(stage.command, stage.line(work, *again), work)
    differs, left = differing(expected, digests(work / stage.output)), leftovers(work)
    ended_well = {
        "kill": struck.status == -9,
        "terminate": struck.status == -15 or "Traceback" not in struck.said,
        "interrupt": struck.status == 130 and "Traceback" not in struck.said,
    }.get(fault, struck.is_one_sentence)
    held = ended_well and mended.status == 0 and not differs and not left
    ended = f"status {struck.status}, then {mended.status}"
    what = f"{fault} before change {moment}: {ended}; differs {differs}, left {left[:3]}"
    return held, what if ended_well else f"{what}; said {struck.said[-600:]}"
