"""How many faults were tried and how many were held, per group: printed at the end of a test run.

``make faults`` runs everything; without it the tests run a small share, the same one every time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

FULL = "MEDKD_FAULTS"
"""Environment variable; ``full`` tries every fault instead of a share, of slow commands at every so-many-th moment;
``every`` tries those at all moments, too, which takes hours.
"""

PROPERTY = "faults"
T = TypeVar("T")


def is_full() -> bool:
    """Whether every fault is tried."""
    return os.environ.get(FULL) in ("full", "every")


def is_every() -> bool:
    """Whether slow commands are struck at all moments, too."""
    return os.environ.get(FULL) == "every"


def share_of(faults: Sequence[T], small: int) -> Sequence[T]:
    """All faults in a full run, else ``small`` of them, evenly spread."""
    if is_full() or len(faults) <= small:
        return faults
    step = len(faults) / small
    return [faults[int(index * step)] for index in range(small)]


def mutations(full: int, small: int) -> int:
    """How many random mutations to try."""
    return full if is_full() else small


@dataclass
class Tally:
    """Counts of one test: faults that were tried, and what happened in those that were not held.

    Attributes:
        group: what is attacked, for example ``kills: predict``.
        tried: how many faults were tried.
        lost: a line per fault that was not held.
        left: how many temporary files the faults left for the next run, which has to sweep them.
    """

    group: str
    tried: int
    lost: list[str]
    left: int = 0

    def check(self, held: bool, what: str) -> None:
        """Count one fault; ``what`` describes it where it was not held."""
        self.tried += 1
        if not held:
            self.lost.append(what)

    def finish(self, request: pytest.FixtureRequest) -> None:
        """Hand the counts to the summary of the run, and fail with the faults that were not held."""
        properties: list[tuple[str, Any]] = request.node.user_properties
        properties.append((PROPERTY, [self.group, self.tried, len(self.lost), self.left]))
        shown = "\n".join(self.lost[:10])
        assert self.tried > 0, f"{self.group}: nothing was tried"
        assert not self.lost, (
            f"{self.group}: {len(self.lost)} of {self.tried} faults were not held, for example:\n{shown}"
        )
