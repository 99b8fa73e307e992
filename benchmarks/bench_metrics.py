"""Time and peak memory of medkd's metrics beside MONAI's and MedPy's, on a synthetic 13-organ case.

    python benchmarks/bench_metrics.py [--repeats 1] [--shape 128 256 256]

Every library scores the same label maps: Dice, HD95 and (where it has one) NSD of every organ. Each runs in a process
of its own, so that its peak memory is its own. MONAI is called once per organ, as its memory for 13 one-hot float
volumes at once would be larger still. Writes ``benchmarks/results/metrics.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from scipy import ndimage

ORGANS = 13
SPACING = (3.0, 0.8, 0.8)
TOLERANCE_MM = 2.0
RESULT = Path(__file__).parent / "results" / "metrics.json"


def case(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Reference with 13 ellipsoids of different size, and a prediction with bent borders and a few stray voxels."""
    rng = np.random.default_rng(0)
    grid = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    maps = []
    for error in (0.0, 0.15):
        labels = np.zeros(shape, np.int16)
        place = np.random.default_rng(1)
        wave = ndimage.zoom(rng.standard_normal([max(2, n // 8) for n in shape]).astype(np.float32), 8, order=1)
        wave = np.pad(wave, [(0, max(0, n - w)) for n, w in zip(shape, wave.shape, strict=True)])[
            tuple(slice(n) for n in shape)
        ]
        for organ in range(1, ORGANS + 1):
            centre = place.uniform(0.25, 0.75, 3) * shape
            radius = place.uniform(0.05, 0.2, 3) * shape
            distance = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius, strict=True))
            labels[distance + error * wave < 1] = organ
        maps.append(labels)
    reference, prediction = maps
    prediction[2, 2, 2:6] = 3
    return prediction, reference


def with_medkd(prediction: np.ndarray, reference: np.ndarray) -> list[float]:
    """One call for all organs."""
    from medkd.core.labels import LabelSpec
    from medkd.evaluation.segmentation.cases import evaluate_case

    labels = LabelSpec.from_names([f"organ {i}" for i in range(1, ORGANS + 1)])
    return [s.hd95 or 0.0 for s in evaluate_case(prediction, reference, SPACING, labels, nsd_tolerance_mm=TOLERANCE_MM)]


def with_monai(prediction: np.ndarray, reference: np.ndarray) -> list[float]:
    """Dice, HD95 and surface Dice, organ by organ."""
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    found = []
    for organ in range(1, ORGANS + 1):
        p, r = (torch.from_numpy(m == organ)[None, None].float() for m in (prediction, reference))
        compute_dice(p, r)
        compute_surface_dice(p, r, [TOLERANCE_MM], include_background=True, spacing=SPACING)
        found.append(float(compute_hausdorff_distance(p, r, include_background=True, percentile=95, spacing=SPACING)))
    return found


def with_medpy(prediction: np.ndarray, reference: np.ndarray) -> list[float]:
    """Dice and HD95 (pooled), organ by organ; MedPy has no NSD."""
    from medpy.metric.binary import dc, hd95

    found = []
    for organ in range(1, ORGANS + 1):
        p, r = prediction == organ, reference == organ
        dc(p, r)
        found.append(float(hd95(p, r, voxelspacing=SPACING)))
    return found


LIBRARIES: dict[str, Callable[[np.ndarray, np.ndarray], list[float]]] = {
    "medkd": with_medkd,
    "monai": with_monai,
    "medpy": with_medpy,
}


def measure(library: str, shape: tuple[int, ...], repeats: int) -> dict[str, object]:
    """Seconds per case (processor seconds are disturbed less by other programs), and memory above data and imports."""
    prediction, reference = case(shape)
    small = tuple(slice(0, n, 4) for n in shape)
    LIBRARIES[library](
        np.ascontiguousarray(prediction[small]), np.ascontiguousarray(reference[small])
    )  # imports and caches
    found: list[float] = []
    wall, processor = [], []
    with peak_memory() as extra:
        for _ in range(repeats):
            start = time.perf_counter(), time.process_time()
            found = LIBRARIES[library](prediction, reference)
            wall.append(time.perf_counter() - start[0])
            processor.append(time.process_time() - start[1])
    return {
        "seconds": round(statistics.median(wall), 3),
        "processor_seconds": round(statistics.median(processor), 3),
        "extra_peak_mib": round(extra[0] / 2**20, 1),
        "hd95": [round(v, 4) for v in found],
    }


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Yield a list that holds the highest resident memory above the start, in bytes, once the block has ended."""
    process, stop, extra = psutil.Process(), threading.Event(), [0]
    start = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.002):
            extra[0] = max(extra[0], process.memory_info().rss - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield extra
    finally:
        stop.set()
        watcher.join()


def main() -> None:
    """Measure every library in a process of its own and write the result."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--shape", type=int, nargs=3, default=[128, 256, 256])
    arguments.add_argument("--repeats", type=int, default=1)
    arguments.add_argument("--library", choices=LIBRARIES, help="measure only this one, here, and print it")
    options = arguments.parse_args()
    if options.library:
        print(json.dumps(measure(options.library, tuple(options.shape), options.repeats)))
        return
    command = [
        sys.executable,
        __file__,
        "--shape",
        *map(str, options.shape),
        "--repeats",
        str(options.repeats),
        "--library",
    ]
    results = {
        name: json.loads(subprocess.run([*command, name], check=True, capture_output=True, text=True).stdout)
        for name in LIBRARIES
    }
    size = " x ".join(map(str, options.shape))
    content = {
        "what": f"one case, {ORGANS} organs, {size} voxels of {SPACING} mm; Dice, HD95, NSD (MedPy: no NSD)",
        "hardware": {"machine": platform.machine(), "processor": _processor(), "cores": os.cpu_count()},
        "versions": {p: version(p) for p in ("numpy", "scipy", "torch", "monai", "medpy")}
        | {"python": platform.python_version()},
        "results": results,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name, result in results.items():
        print(
            f"{name:6s} {result['seconds']:8.2f} s ({result['processor_seconds']:.2f} s of processor)  "
            f"{result['extra_peak_mib']:8.0f} MiB"
        )
    print(f"written: {RESULT}")


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
