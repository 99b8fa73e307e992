"""Signs of life: who is seen to be gone, and who is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from medkd.training.pulse import Death, Pulse

COUNT = 2


class _Store:
    """A store of counters in this process."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.gone = self.frozen = False

    def add(self, name: str, amount: int) -> int:
        if self.gone:
            raise RuntimeError("no such host")
        while self.frozen:
            time.sleep(0.01)
        self.numbers[name] = self.numbers.get(name, 0) + amount
        return self.numbers[name]


def _first_death(act: Callable[[_Store, Pulse], None]) -> Death | None:
    """What process 0 sees of process 1."""
    store, seen, ended = _Store(), [], threading.Event()

    def end(death: Death) -> None:
        seen.append(death)
        ended.set()

    pulses = [Pulse(store, number, COUNT, end, every=0.01, patience=0.2) for number in range(COUNT)]
    try:
        pulses[0].watching = True
        assert not ended.wait(0.3)  # both live
        act(store, pulses[1])
        ended.wait(0.6)
    finally:
        store.frozen = False
        for pulse in pulses:
            pulse.leave()
    return seen[0] if seen else None


def test_signs_of_life() -> None:
    assert _first_death(lambda store, other: other._stopped.set()) == Death(1, True)
    assert _first_death(lambda store, other: other.fail()) == Death(1, False)
    assert _first_death(lambda store, other: setattr(store, "gone", True)) == Death(None, True)
    assert _first_death(lambda store, other: setattr(store, "frozen", True)) == Death(None, True)
    assert _first_death(lambda store, other: other.leave()) is None
