"""Which batches several trainings side by side get, with trainings that only count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from medkd.core.errors import RunError
from medkd.core.run import Budget
from medkd.training.side_by_side import Randomness, Sharing, Student, _train


class _Counting:
    """A training that keeps the numbers of its batches, and may fail at one."""

    def __init__(self, epoch: int, fails_at: int | None = None) -> None:
        self.settings = SimpleNamespace(budget=Budget(4, 5, 1, 0.1, 0))
        self.epoch, self.fails_at, self.data = epoch, fails_at, "equal"
        self.seen: list[int] = []

    @property
    def first_step(self) -> int:
        return self.epoch * self.settings.budget.iterations_per_epoch

    def batches(self, first_step: int) -> Iterator[int]:
        return iter(range(first_step, 20))

    def begin_epoch(self) -> None: ...

    def finish(self) -> None: ...

    def step(self, batch: int) -> None:
        if batch == self.fails_at:
            raise RunError("The loss became NaN.")
        self.seen.append(batch)

    def end_epoch(self, *, seconds: float) -> None:
        self.epoch += 1


def _student(trainer: Any) -> Student:
    job: Any = SimpleNamespace(folder=Path("results/set/run/fold_0"))
    return Student(job, trainer, Randomness(torch.device("cpu")))


def test_nobody_takes_over_the_batches_of_one_that_failed_while_it_caught_up() -> None:
    behind, ahead, further = _Counting(1, fails_at=7), _Counting(3), _Counting(2)
    students = [_student(trainer) for trainer in (behind, ahead, further)]
    _train(students, Sharing())
    assert [student.error is None for student in students] == [False, True, True]
    assert (behind.seen, ahead.seen) == ([5, 6], list(range(15, 20))) and further.seen == list(range(10, 20))


def test_those_that_go_on_keep_the_batches_that_they_share_with_one_that_failed() -> None:
    failing, other = _Counting(0, fails_at=2), _Counting(0)
    _train([_student(failing), _student(other)], Sharing())
    assert failing.seen == [0, 1] and other.seen == list(range(20))
