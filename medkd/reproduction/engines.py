"""Where the commands of a recipe run: on this machine, on a Ray cluster, or under Slurm. None schedules by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Protocol

from medkd.core.errors import RunError
from medkd.core.plugins import Lazy

ENGINES = ("local", "ray", "slurm")


@dataclass(frozen=True, kw_only=True)
class Order:
    """A command to run.

    Attributes:
        name: of the run.
        command: words, the program first.
        output: file for its standard output.
        log: file for its standard error.
        environment: further variables.
    """

    name: str
    command: tuple[str, ...]
    output: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an engine is asked for.

    Attributes:
        jobs: most commands at a time; None follows from the devices.
        gpus: per command; a part of one lets several commands share it; None is one on a Ray cluster that has any, and
            whatever Slurm gives by itself.
        cpus: per command.
        memory_gb: per command; None asks for none in particular.
        address: of a Ray cluster; None starts one on this machine.
        device: that the commands were told to use; on ``cpu`` they get no GPU.
        options: of Slurm, such as ``{"partition": "gpu", "timeout_min": "600"}``.
        folder: for the engine's own files, on a file system that all machines share.

    Raises:
        RunError: a number means nothing.
    """

    jobs: int | None = None
    gpus: float | None = None
    cpus: int = 1
    memory_gb: float | None = None
    address: str | None = None
    device: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()

    def __post_init__(self) -> None:
        if self.gpus is not None and not (isfinite(self.gpus) and self.gpus >= 0):
            raise RunError(f"--gpus expects a number of at least 0, found {self.gpus:g}.")
        if self.memory_gb is not None and not (isfinite(self.memory_gb) and self.memory_gb > 0):
            raise RunError(f"--memory expects a number above 0, found {self.memory_gb:g}.")


AGAIN = -1000  # no signal ends a process with it
"""The exit status of a command that was not ended by itself (an earlier runner began it and nobody saw its own, or the
machine was lost): it is begun again, and goes on from what it kept."""


class Handle(Protocol):
    """A command that was begun."""

    ticket: str
    """By which :meth:`Engine.find` finds it when the runner was killed; empty where it ends with the runner."""

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        ...


class Engine(Protocol):
    """Runs commands."""

    def free(self) -> int:
        """How many more commands may be begun now."""
        ...

    def begin(self, orders: Sequence[Order]) -> Sequence[Handle]:
        """Begin some commands; :meth:`free` said that there is room.

        Raises:
            RunError: the engine refuses.
        """
        ...

    def find(self, ticket: str) -> Handle | None:
        """A command that an earlier runner began and that still runs; None where it has ended, or another engine runs
        it.
        """
        ...

    def stop(self) -> None:
        """End what runs; each command keeps what it has computed."""
        ...


_KNOWN = {
    "local": Lazy("medkd.reproduction.local:LocalEngine"),
    "ray": Lazy("medkd.reproduction.ray_cluster:RayEngine"),
    "slurm": Lazy("medkd.reproduction.slurm:SlurmEngine"),
}


def make_engine(name: str, needs: Needs) -> Engine:
    """An engine by its name.

    Raises:
        RunError: there is none of this name, its package is not installed, or it cannot be reached.
    """
    if name not in _KNOWN:
        raise RunError(f"--engine must be one of {', '.join(ENGINES)}, found '{name}'.")
    engine: Engine = _KNOWN[name](needs)
    return engine
