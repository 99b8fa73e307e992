"""Signs of life: who is seen to be gone, and who is not."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

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

    pulses = [Pulse(store, number, COUNT, end, every=0.02, patience=0.6) for number in range(COUNT)]
    try:
        pulses[0].watching = True
        assert not ended.wait(0.8)  # both live
        act(store, pulses[1])
        ended.wait(1.5)
    finally:
        store.frozen = False
        _all_leave(pulses)
    return seen[0] if seen else None


def _all_leave(pulses: list[Pulse]) -> None:
    """At one time, as processes do: each waits for the others."""
    leaving = [threading.Thread(target=pulse.leave) for pulse in pulses]
    for thread in leaving:
        thread.start()
    for thread in leaving:
        thread.join(5)
        assert not thread.is_alive()


def test_one_that_is_done_waits_for_the_others_before_it_disconnects() -> None:
    """The first process predicts what all have trained; it is waited for until it is done, fails or dies."""
    for act, waits in (
        (lambda store, other: _all_leave([other]), False),
        (lambda store, other: other.fail(), False),
        (lambda store, other: other._stopped.set(), False),
        (lambda store, other: setattr(store, "gone", True), False),
        (lambda store, other: setattr(store, "frozen", True), False),
        (lambda store, other: None, True),
    ):
        store = _Store()
        done, other = (Pulse(store, number, COUNT, _never, every=0.02, patience=0.5) for number in range(COUNT))
        leaving = threading.Thread(target=done.leave)
        leaving.start()
        leaving.join(0.8)
        assert leaving.is_alive()  # longer than the patience, since the other one lives
        act(store, other)
        leaving.join(0.6 if waits else 10)
        assert leaving.is_alive() == waits
        store.frozen = False
        _all_leave([other])
        leaving.join(5)


def _never(death: Death) -> None:
    raise AssertionError(death)


def test_a_failure_is_told_without_waiting_for_a_store_that_does_not_answer() -> None:
    store = _Store()
    pulse = Pulse(store, 0, COUNT, _never, every=0.02, patience=60)
    store.frozen = True
    time.sleep(0.1)  # its own sign of life waits for the store now
    begun = time.monotonic()
    pulse.fail()
    assert time.monotonic() - begun < 1
    store.frozen = False
    pulse.leave()


def test_signs_of_life() -> None:
    assert _first_death(lambda store, other: other._stopped.set()) == Death(1, True)
    assert _first_death(lambda store, other: other.fail()) == Death(1, False)
    assert _first_death(lambda store, other: setattr(store, "gone", True)) == Death(None, True)
    assert _first_death(lambda store, other: setattr(store, "frozen", True)) == Death(None, True)
    assert _first_death(lambda store, other: threading.Thread(target=other.leave, daemon=True).start()) is None


@pytest.mark.parametrize("failed", [False, True])
def test_no_thread_is_left_that_could_come_back_from_the_store_while_python_ends(failed: bool) -> None:
    """Threads in torch's store at the interpreter's end abort the process, and its status is lost."""
    words = f"""
import os, sys
from datetime import timedelta
import torch.distributed as dist
from medkd.training.pulse import Pulse

store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=5))
pulse = Pulse(store, 0, 1, lambda death: None, every=0.0005)
{"pulse.fail()" if failed else ""}
pulse.leave()
print([thread.is_alive() for thread in pulse._threads])
sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, "True" in done.stdout) == (7, False), done.stderr
