"""What all benchmarks share: phases with time and peak memory, and the description of the machine."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

RESULTS = Path(__file__).parent / "results"


class Phases:
    """Seconds, processor seconds (which other programs disturb less) and peak resident memory of named phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor: dict[str, float] = {}
        self.peak: dict[str, float] = {}
        self._process = psutil.Process()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure one phase; repeated phases add up in time."""
        start, stop = self._process.memory_info().rss, threading.Event()
        highest = [start]

        def watch() -> None:
            while not stop.wait(0.005):
                highest[0] = max(highest[0], self._process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        begin, processor = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - begin
            self.processor[name] = self.processor.get(name, 0) + time.process_time() - processor
            stop.set()
            watcher.join()
            self.peak[name] = max(self.peak.get(name, 0), (highest[0] - start) / 2**20)

    def table(self) -> str:
        """One line per phase."""
        total = sum(self.seconds.values())
        lines = [
            f"{n:14s} {s:8.3f} s {100 * s / total:5.1f} %  {self.processor[n]:8.3f} processor s  +{self.peak[n]:7.0f} "
            "MiB"
            for n, s in self.seconds.items()
        ]
        return "\n".join([*lines, f"{'all':14s} {total:8.3f} s"])

    def results(self) -> dict[str, Any]:
        """For the JSON file."""
        return {"seconds": self.seconds, "processor_seconds": self.processor, "peak_mib": self.peak}


def machine(*packages: str) -> dict[str, Any]:
    """Hardware and versions: processor and the vector instructions that torch uses of it (AVX2, AVX512), cores,
    threads, GPU, Python, torch, medkd and the named packages.
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "numpy", "medkd", *packages)},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def dice_of_labels(found: np.ndarray, reference: np.ndarray) -> list[float]:
    """Dice of every label but the background that either map holds."""
    scores = []
    for label in np.union1d(np.unique(found), np.unique(reference)):
        if label > 0:
            one, other = found == label, reference == label
            scores.append(2 * float((one & other).sum()) / float(one.sum() + other.sum()))
    return scores
