"""Commands on this machine: one per GPU, or as many as are asked for."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

import psutil

from medkd.reproduction.engines import AGAIN, Needs, Order

_PATIENCE = 30.0  # seconds that a command has to write its checkpoint when it is stopped


class LocalHandle:
    """A child process in one of the places.

    Args:
        child: the process.
        place: number of its place.
    """

    def __init__(self, child: subprocess.Popen[bytes], place: int) -> None:
        self.child, self.place = child, place
        self.ticket = f"{child.pid} {_born(child.pid)} {place}"

    def poll(self) -> int | None:
        """Exit status, or None."""
        return self.child.poll()


class FoundHandle:
    """A process that an earlier runner began, which was killed itself.

    Args:
        ticket: of its handle.
        place: number of the place that it holds.
    """

    def __init__(self, ticket: str, place: int) -> None:
        self.ticket, self.place = ticket, place

    def poll(self) -> int | None:
        """:data:`~medkd.reproduction.engines.AGAIN` as soon as it has ended."""
        return None if _lives(self.ticket) else AGAIN


def find_here(ticket: str) -> FoundHandle | None:
    """The process of this machine that a runner with the local engine began; None where there is none, or the ticket is
    of another engine.
    """
    return FoundHandle(ticket, int(ticket.split()[2])) if _lives(ticket) else None


class LocalEngine:
    """Fills the GPUs that CUDA shows, or the cores.

    Args:
        needs: ``jobs`` at a time; None is one per GPU, and one on a machine without or for commands that use none.
    """

    def __init__(self, needs: Needs) -> None:
        self.devices = [] if needs.device == "cpu" else visible_devices()
        self.places = needs.jobs or max(1, len(self.devices))
        self.handles: list[LocalHandle | FoundHandle] = []

    def free(self) -> int:
        """Places that no running command holds."""
        self.handles = [handle for handle in self.handles if handle.poll() is None]
        return self.places - len(self.handles)

    def begin(self, orders: Sequence[Order]) -> list[LocalHandle]:
        """Start a child process per command, each on the device of its place."""
        begun = []
        for order in orders:
            taken = {handle.place for handle in self.handles}
            place = next(number for number in range(self.places) if number not in taken)
            handle = LocalHandle(self._start(order, place), place)
            self.handles.append(handle)
            begun.append(handle)
        return begun

    def find(self, ticket: str) -> FoundHandle | None:
        """The process of a ticket, which takes a place."""
        found = find_here(ticket)
        if found is not None:
            self.handles.append(found)
        return found

    def stop(self) -> None:
        """Interrupt the commands, which keep what they have; kill those that do not end."""
        processes = []
        for handle in self.handles:
            with suppress(psutil.Error):
                processes.append(psutil.Process(int(handle.ticket.split()[0])))
        for process in processes:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(processes, timeout=_PATIENCE)
        for process in alive:
            with suppress(psutil.Error):
                process.kill()

    def _start(self, order: Order, place: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **order.environment}
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[place % len(self.devices)]
        elif self.places > 1:
            threads = max(1, (os.cpu_count() or 1) // self.places)
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        order.log.parent.mkdir(parents=True, exist_ok=True)
        with open(order.output, "wb") as output, open(order.log, "ab") as log:
            return subprocess.Popen(
                order.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                env=environment,
                start_new_session=True,  # a Ctrl-C in the terminal comes to the runner, which passes it on once
            )


def _born(process: int) -> float:
    try:
        return psutil.Process(process).create_time()
    except psutil.Error:
        return 0.0


def _lives(ticket: str) -> bool:
    """Whether the process of a ticket is there and is the same one; numbers are used again."""
    try:
        number, born, _ = ticket.split()
        process = psutil.Process(int(number))
        return abs(process.create_time() - float(born)) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):
        return False


def visible_devices() -> list[str]:
    """Names of the GPUs that CUDA shows, as ``CUDA_VISIBLE_DEVICES`` takes them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
