"""Many cases and many structures: nothing is left out, and neither time per case nor memory grows with their number."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bench_scale import Cost, of_cases, of_ct
from medkd.cli.overview import main
from tests.faults.tally import Tally, is_full


def here(*words: object) -> Cost:
    """A command in this process."""
    if main([str(word) for word in words]) != 0:
        raise RuntimeError(f"{words} failed")
    return Cost(0.0, 0.0, 0.0)


def test_no_case_is_left_out(tmp_path: Path) -> None:
    of_cases(tmp_path, 30, here)


def test_no_structure_of_sixty_is_left_out(tmp_path: Path) -> None:
    of_ct(tmp_path, (64, 64, 48), 60, command=here)


@pytest.mark.slow
def test_memory_and_time_per_case_stay_with_many_cases(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not is_full():
        pytest.skip("takes minutes; MEDKD_FAULTS=full")
    few, many = (of_cases(tmp_path / str(cases), cases) for cases in (250, 2000))
    tally = Tally("scale: 2000 cases", 0, [])
    for stage, cost in many.items():
        growth, per_case = cost.peak_mib - few[stage].peak_mib, cost.processor / 2000
        what = f"{stage}: {few[stage]} for 250 cases, {cost} for 2000"
        tally.check(growth < 100 and per_case < 1.5 * few[stage].processor / 250, what)
    tally.finish(request)


@pytest.mark.slow
def test_a_large_ct_with_sixty_structures(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not is_full():
        pytest.skip("takes minutes; MEDKD_FAULTS=full")
    tally = Tally("scale: CT of 512 x 512 x 700", 0, [])
    for stage, cost in of_ct(tmp_path, (512, 512, 700), 60).items():
        tally.check(cost.peak_mib < 12_000, f"{stage}: {cost}")
    tally.finish(request)
