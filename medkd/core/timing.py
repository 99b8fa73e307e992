"""Times of several things that are compared, taken in turns, and the file that keeps them beside the runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from medkd.core.errors import RunError
from medkd.core.serial import load, save

TIMINGS_FILE = "latency.json"


@dataclass(frozen=True, kw_only=True)
class MeasuredExport:
    """An exported model that was timed beside the runs.

    Attributes:
        name: of its folder.
        made_from: name of the run or model that was exported; empty where it does not say.
        engine: what computed it.
        int8: whether its network is quantised.
        size: bytes of the network.
        seconds: of each repetition.
    """

    name: str
    made_from: str
    engine: str
    int8: bool
    size: int
    seconds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Timings:
    """``latency.json`` in a data set's results: how long the runs take for the same case, measured together.

    Attributes:
        unit: what was predicted, ``scan`` or ``image``.
        case: its name.
        size: its voxels or pixels per axis.
        device: where the networks ran.
        threads: CPU threads.
        settings: in words, how was predicted (mirroring, step size, precision).
        seconds: run → seconds of each repetition, in the order in which they were taken.
        exports: exported models that took turns with the runs.
    """

    unit: str
    case: str
    size: tuple[int, ...]
    device: str
    threads: int
    settings: str
    seconds: Mapping[str, tuple[float, ...]]
    exports: tuple[MeasuredExport, ...] = ()
    schema: int = 1

    def of(self, run: str) -> Spread | None:
        """The times of a run; None where it was not measured."""
        taken = self.seconds.get(run, ())
        return Spread.of(taken) if taken else None

    def save(self, results: Path) -> Path:
        """Write the file into a data set's results folder."""
        save(results / TIMINGS_FILE, self)
        return results / TIMINGS_FILE

    @classmethod
    def load(cls, results: Path) -> Timings | None:
        """Read the file of a data set's results folder; None where nothing was measured.

        Raises:
            DataError: the file is damaged.
        """
        path = results / TIMINGS_FILE
        return load(cls, path) if path.exists() else None


@dataclass(frozen=True)
class Spread:
    """Median of repeated times in seconds, with the quartiles and how many there were."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, seconds: tuple[float, ...]) -> Spread:
        """Of at least one time."""
        low, median, high = np.percentile(seconds, (25, 50, 75))
        return cls(float(median), float(low), float(high), len(seconds))


def interleaved(
    actions: Mapping[str, Callable[[], object]], repetitions: int, warm_up: bool = True
) -> dict[str, tuple[float, ...]]:
    """Time several actions in turns, so that what else the machine does hits all of them alike.

    In each round the order is reversed, so that none always follows the same one.

    Args:
        actions: name → what is timed; must wait until its work is done.
        repetitions: timed runs of each.
        warm_up: run every action once beforehand without timing it.

    Returns:
        name → seconds per repetition.
    """
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values() if warm_up else ():
        action()
    order = list(actions)
    with tqdm(total=repetitions * len(order), desc="measuring", unit="run", disable=None) as bar:
        for _ in range(repetitions):
            for name in order:
                start = time.perf_counter()
                actions[name]()
                taken[name].append(time.perf_counter() - start)
                bar.update()
            order.reverse()
    return {name: tuple(seconds) for name, seconds in taken.items()}


def readable_seconds(seconds: float) -> str:
    """A time in the unit people read: ``0.8 ms``, ``45 ms``, ``1.3 s``, ``2 min 5 s``."""
    if seconds < 0.01:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s"


def time_in_turns(
    results: Path,
    actions: Mapping[str, Callable[[], object]],
    repetitions: int,
    *,
    unit: str,
    case: str,
    size: tuple[int, ...],
    device: str,
    settings: str,
    exports: Sequence[MeasuredExport] = (),
) -> Timings:
    """Time the predictions of several runs, interleaved, and keep the times beside the runs.

    Args:
        results: results folder of the data set.
        actions: run → predicts one and the same case.
        repetitions: timed predictions of each run, after one that is not timed.
        unit: what is predicted: ``scan`` or ``image``.
        case: its id.
        size: in voxels or pixels.
        device: where the networks run.
        settings: with which, for people.
        exports: exported models, whose names are among the actions; their times are filled in.

    Raises:
        RunError: there is no run.
    """
    import torch

    if not actions:
        raise RunError(f"{results}: no run has trained weights to measure; train one to its end first.")
    taken = interleaved(actions, repetitions)
    exported = [replace(export, seconds=taken.pop(export.name)) for export in exports]
    timings = Timings(
        unit=unit,
        case=case,
        size=size,
        device=device,
        threads=torch.get_num_threads(),
        settings=settings,
        seconds=taken,
        exports=tuple(exported),
    )
    timings.save(results)
    return timings
