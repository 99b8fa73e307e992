"""Time, memory and waiting of steps on a CUDA device; without one only the time, to see that a script works."""

from __future__ import annotations

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_SYNC = "synchronizing CUDA operation"


def milliseconds(step: Callable[[], Any], repeats: int, warm: int = 3) -> dict[str, float]:
    """Median, smallest and largest time of a call between two marks in the device's queue.

    The queue is empty at the first mark, so that time in which the device waits for the host counts.
    """
    for _ in range(warm):
        step()
    found = [_clocked(step) for _ in range(repeats)]
    return {
        "median": round(statistics.median(found), 3),
        "least": round(min(found), 3),
        "most": round(max(found), 3),
    }


def _clocked(step: Callable[[], Any]) -> float:
    if not torch.cuda.is_available():
        started = time.perf_counter()
        step()
        return 1000 * (time.perf_counter() - started)
    begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begun.record()
    step()
    ended.record()
    torch.cuda.synchronize()
    return begun.elapsed_time(ended)


def peak_mib(step: Callable[[], Any]) -> float:
    """MiB that the allocator gave out at most during a call, beyond what was in use before it."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def waits(step: Callable[[], Any]) -> dict[str, int]:
    """Where the host waits for the device during a call: ``file:line`` → how often, as torch reports it."""
    if not torch.cuda.is_available():
        return {}
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    places = Counter(f"{Path(entry.filename).name}:{entry.lineno}" for entry in caught if _SYNC in str(entry.message))
    return dict(places)


def launches(step: Callable[[], Any]) -> int:
    """Kernels, copies and fills that a call starts on the device."""
    if not torch.cuda.is_available():
        return 0
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in seen.events())
