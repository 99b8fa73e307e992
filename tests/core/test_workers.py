from __future__ import annotations

import pytest

from medkd.core import workers
from medkd.core.errors import DataError
from medkd.core.workers import run_cases, worker_count


def test_results_keep_the_order_of_the_cases() -> None:
    assert list(run_cases(str.upper, ["b", "a", "c"], 2, "test").items()) == [("b", "B"), ("a", "A"), ("c", "C")]


def test_a_failing_case_is_named_and_the_others_are_done() -> None:
    done = []

    def work(case: str) -> None:
        if case == "bad":
            raise ValueError("a broken header")
        done.append(case)

    with pytest.raises(DataError, match=r"(?s)1 of 3 cases failed.*bad: ValueError: a broken header"):
        run_cases(work, ["a", "bad", "c"], 1, "test")
    assert done == ["a", "c"]


def test_memory_limits_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "available_memory", lambda: 10 * 2**30)
    monkeypatch.setattr(workers, "available_cores", lambda: 16)
    assert worker_count(2**20, 100) == 16
    assert worker_count(2 * 2**30, 100) == 4
    assert worker_count(2 * 2**30, 100, wanted=3) == 3
    assert worker_count(100 * 2**30, 100) == 1, "one worker always tries"
    assert worker_count(2**20, 2) == 2
