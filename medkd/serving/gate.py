"""How many scans may be in the house at a time, and whether somebody still waits for one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from medkd.serving.limits import BusyError


class Gate:
    """Lets a bounded number of scans in.

    Args:
        most: scans at a time.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._inside = 0
        self._lock = threading.Lock()

    @property
    def inside(self) -> int:
        """Scans that were let in and have not left."""
        return self._inside

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one scan, given back at the end of the block.

        Raises:
            BusyError: there is none.
        """
        with self._lock:
            if self._inside >= self.most:
                raise BusyError(
                    f"The server works on {self._inside} scans, as many as it takes at a time; try again in a moment."
                )
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
