"""Work on many cases at once, as many as memory and cores allow; a failing case is named and does not stop the
others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import psutil
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from medkd.core.errors import DataError, MedkdError

T = TypeVar("T")

_MEMORY_SHARE = 0.8  # of the free memory; the rest is for the page cache and for estimates that are too low
_SHOWN = 20

_log = logging.getLogger(__name__)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_workers(processes: int = 1) -> int:
    """Loader processes: all cores but one, at most 12; none on one or two cores, where they would take the network's
    cores.

    Args:
        processes: that share the cores, each with loader processes of its own.
    """
    cores = available_cores() // processes
    return 0 if cores <= 2 else min(12, cores - 1)


def available_memory() -> int:
    """Free memory in bytes, within the limit of a container where there is one."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    if not limit.isdecimal():  # "max"
        return free
    return min(free, max(int(limit) - used, 0))


def worker_count(bytes_per_task: float, tasks: int, wanted: int | None = None) -> int:
    """Number of threads: no more than tasks, cores (or ``wanted``), and what fits into memory; at least one."""
    by_memory = int(available_memory() * _MEMORY_SHARE // max(bytes_per_task, 1))
    return max(1, min(tasks, wanted or available_cores(), by_memory))


def run_cases(function: Callable[[str], T], cases: Sequence[str], workers: int, title: str) -> dict[str, T]:
    """Call ``function(case)`` for all cases, with a progress bar, and return the results in the order of ``cases``.

    Threads, since reading, products and most of SciPy release the interpreter lock, and nothing has to be sent
    anywhere.

    Raises:
        DataError: one or more cases failed, after all others were done; every one is named with its reason.
    """
    results: dict[str, T] = {}
    failed: dict[str, str] = {}
    pool = ThreadPoolExecutor(workers)
    # the products of resampling are small and bound by memory: a second BLAS thread per worker costs 2.5 times the
    # processor time and saves none
    with threadpool_limits(limits=1):
        try:
            futures = {pool.submit(function, case): case for case in cases}
            for future in tqdm(as_completed(futures), total=len(cases), desc=title, unit="case", disable=None):
                case = futures[future]
                try:
                    results[case] = future.result()
                except Exception as error:  # a worker's error must not hide the case it came from, whatever it is
                    _log.debug("case %s", case, exc_info=error)
                    failed[case] = str(error) if isinstance(error, MedkdError) else f"{type(error).__name__}: {error}"
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if failed:
        raise DataError(_failure_text(failed, len(cases), title))
    return {case: results[case] for case in cases}


def _failure_text(failed: Mapping[str, str], total: int, title: str) -> str:
    names = sorted(failed)
    lines = [f"  {case}: {failed[case]}" for case in names[:_SHOWN]]
    if len(names) > _SHOWN:
        lines.append(f"  and {len(names) - _SHOWN} more: {', '.join(names[_SHOWN:])}")
    head = (
        f"{title}: {len(failed)} of {total} cases failed, the others went through; mend these and run the command "
        "again."
    )
    return "\n".join([head, *lines])
