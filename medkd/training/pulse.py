"""Signs of life among processes that train together, so that one that is gone ends the others within a minute.

``torchrun`` sees the processes of its own machine only, and a process that waits for a dead one waits for very long.
So every process counts up a number of its own in the store through which they found each other, and looks at the
others'.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

_EVERY = 5.0  # seconds
_PATIENCE = 40.0  # seconds without a sign; with the time between two looks less than a minute
_LEFT = 1 << 40  # added by one that is done
_FAILED = 1 << 50  # added by one that ended with an error


@dataclass(frozen=True)
class Death:
    """What was seen.

    Attributes:
        number: of the process; None where nobody can be asked any more.
        silent: it gave no sign any more; otherwise it ended with an error.
    """

    number: int | None
    silent: bool


def message_of(death: Death, count: int, remedy: str) -> str:
    """The sentence for the user.

    >>> message_of(Death(1, True), 2, "go on")
    'Process 1 (of 0 to 1) gave no sign of life for 40 s, so the training ends; go on.'
    """
    if death.number is None:
        return f"The process through which {count} processes train together is gone, so the training ends; {remedy}."
    did = f"gave no sign of life for {_PATIENCE:.0f} s" if death.silent else "ended with an error, see what it says"
    return f"Process {death.number} (of 0 to {count - 1}) {did}, so the training ends; {remedy}."


class Pulse:
    """Gives signs of life, and while :attr:`watching` looks for those of the others.

    Args:
        store: of :mod:`torch.distributed`, with ``add``; used by one thread at a time.
        number: of this process.
        count: of all.
        end: called, from another thread, with what was seen.
        every: seconds between two signs.
        patience: seconds after which one without a sign counts as dead.
    """

    def __init__(
        self,
        store: Any,
        number: int,
        count: int,
        end: Callable[[Death], None],
        every: float = _EVERY,
        patience: float = _PATIENCE,
    ) -> None:
        self.watching = False
        self._store, self._number, self._count, self._end = store, number, count, end
        self._every, self._patience = every, patience
        self._failed = self._left = False
        self._stopped, self._leaving, self._all_done = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.RLock()  # a signal may come while it is held
        self._seen: dict[int, tuple[int, float]] = {}
        self._answered = time.monotonic()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._guard)]
        for thread in self._threads:
            thread.start()

    @classmethod
    def begin(cls, number: int, count: int, message: Callable[[Death], str]) -> Pulse:
        """The pulse of this process, which ends it with a message when another one is gone."""
        import torch.distributed as dist

        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=_PATIENCE / 2))
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # what ended an earlier start counts no more
        return cls(dist.PrefixStore(f"medkd/{start}", store), number, count, lambda death: _end(message(death)))

    def fail(self) -> None:
        """Tell the others that this process ends with an error; not for long where the store does not answer."""
        self.watching = False
        self._failed = True
        telling = threading.Thread(target=self._add, args=(self._number, _FAILED), daemon=True)
        self._threads.append(telling)
        telling.start()
        telling.join(self._every)

    def leave(self) -> None:
        """Tell the others that this process is done, and disconnect when all are, or are gone: the first one may
        predict for hours what the others have trained with it, and to disconnect is something that all do together.
        """
        import torch.distributed as dist

        self.watching = False
        if self._failed:
            self._rest()
            return  # disconnecting would wait for the others
        self._leaving.set()  # at the interpreter's end no thread can be started: the beat tells it
        while not self._all_done.wait(self._every) and self._answers():
            pass
        self._rest()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _rest(self) -> None:
        """Let the threads end: one that comes back from the store while Python ends would abort the process. They are
        not waited for long where the store does not answer.
        """
        self._stopped.set()
        self._leaving.set()  # so that none waits for the time of its next sign
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(self._every)

    def _answers(self) -> bool:
        """Whether the store answered lately."""
        return time.monotonic() - self._answered <= self._patience

    def _add(self, number: int, amount: int) -> int | None:
        """Add to a process's number; None where the store is gone."""
        with self._lock:
            try:
                return int(self._store.add(f"pulse{number}", amount))
            except RuntimeError:
                return None

    def _pause(self) -> bool:
        """Wait for the time of the next sign, which comes soon where this process is done; whether there is none."""
        if self._leaving.is_set():
            return self._stopped.wait(self._every / 25)
        self._leaving.wait(self._every)
        return self._stopped.is_set()

    def _beat(self) -> None:
        while not self._pause():
            leaving = self._leaving.is_set()
            death = self._sign(leaving)
            self._answered = time.monotonic()
            if leaving and (death is not None or all(last >= _LEFT for last, _ in self._seen.values())):
                self._all_done.set()
            if death is not None and self.watching:
                self._end(death)
                return

    def _sign(self, leaving: bool) -> Death | None:
        """Give a sign of life, or once the sign that this process is done, and look for those of the others."""
        if self._add(self._number, _LEFT if leaving and not self._left else 1) is None:
            return Death(None, True)
        self._left = leaving
        return self._look() if self.watching or leaving else None

    def _guard(self) -> None:
        """See that the store answers: one whose machine lost its network is waited for without end."""
        while not self._stopped.wait(self._every):
            if self.watching and not self._answers():
                self._end(Death(None, True))
                return

    def _look(self) -> Death | None:
        """The first of the others that is gone."""
        for number in range(self._count):
            if number == self._number:
                continue
            found = self._add(number, 0)
            if found is None:
                return Death(None, True)
            if found >= _FAILED:
                return Death(number, False)
            now = time.monotonic()
            last, since = self._seen.get(number, (-1, now))
            if found != last or found >= _LEFT:
                last, since = found, now
            self._seen[number] = (last, since)
            if now - since > self._patience:
                return Death(number, True)
        return None


@contextmanager
def told_to_end(message: str) -> Iterator[None]:
    """A block in which SIGTERM, which ``torchrun`` sends to all when one of them ends, leaves a sentence and cleans up.

    Args:
        message: the sentence.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not ours:
        yield
        return
    process = os.getpid()

    def end(*_: Any) -> None:
        if os.getpid() == process:  # and no loader process
            os.write(2, f"error: {message}\n".encode())
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(message: str) -> None:
    """End this process, whose main thread may wait for ever in a library."""
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    os._exit(1)
