"""Many small cases, scans of growing size, and one large CT with many structures: time and peak memory of every stage.

    python -m benchmarks.bench_scale --cases 500 2000
    python -m benchmarks.bench_scale --sizes 64 96 128 160
    python -m benchmarks.bench_scale --ct 512 512 700 --labels 60

Every stage is a command in a process of its own, with one process for all cases, so that its peak is its own. The
network is trained for one step: what it finds is of no interest here. Writes benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.measure import RESULTS, machine
from medkd.core.dataset import DatasetDescription
from medkd.core.files import read_json, write_json
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.plan import Plan
from medkd.core.serial import save
from medkd.io.volumes import write_volume

Command = Callable[..., "Cost"]
NAME = "Dataset001_Scale"
OUTPUT = RESULTS / "scale.json"
_BUDGET = ("--epochs", "1", "--iterations-per-epoch", "1", "--batch-size", "1", "--workers", "0", "--device", "cpu")
_COARSE = "coarse"
_SCANS = 4  # of each size


@dataclass(frozen=True)
class Cost:
    """Of one command.

    Attributes:
        seconds: wall-clock time.
        processor: seconds of the processor, which other programs disturb less.
        peak_mib: largest resident memory.
    """

    seconds: float
    processor: float
    peak_mib: float


def measured(*words: str | int | Path) -> Cost:
    """Run one of medkd's commands in a process of its own.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    begin, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as said:
        process = psutil.Popen([sys.executable, "-m", "medkd", *map(str, words)], stdout=said, stderr=subprocess.STDOUT)
        times = process.cpu_times()
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                times, peak = process.cpu_times(), max(peak, _peak_mib(process))
            time.sleep(0.02)
        said.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"medkd {words[0]} ended with {process.returncode}: {said.read()[-2000:]}")
    return Cost(round(time.perf_counter() - begin, 2), round(times.user + times.system, 2), round(peak, 1))


def _peak_mib(process: psutil.Process) -> float:
    """The most that a process had so far where the system says it, else what it has."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float(process.memory_info().rss / 2**20)
    stated = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")]
    return stated[0] if stated else 0.0


def _describe(raw: Path, cases: int, labels: int) -> None:
    names = LabelSpec.from_names([f"structure_{number}" for number in range(1, labels + 1)])
    DatasetDescription(channel_names=("CT",), labels=names, num_training=cases).save(raw / "dataset.json")


def write_small_cases(root: Path, cases: int, size: int = 16) -> Path:
    """Scans of ``size`` ³ voxels with two boxes each, in the raw layout; returns their folder."""
    raw = root / "raw" / NAME
    for number in range(cases):
        rng = np.random.default_rng(number)
        label = np.zeros((size, size, size), np.uint8)
        for value, corner in ((1, rng.integers(1, 4, 3)), (2, rng.integers(8, 11, 3))):
            label[tuple(slice(start, start + 4) for start in corner)] = value
        image = (label * 100 + rng.normal(0, 20, label.shape)).astype(np.int16)
        geometry = Geometry.from_spacing(label.shape, (1.0, 1.0, 1.0))
        write_volume(raw / "imagesTr" / f"case_{number:05d}_0000.nii.gz", image, geometry)
        write_volume(raw / "labelsTr" / f"case_{number:05d}.nii.gz", label, geometry)
    _describe(raw, cases, 2)
    return raw


def write_ct(root: Path, shape: Sequence[int], labels: int) -> Path:
    """One CT of this size (x, y, z) with so many boxes in a grid, each a structure; returns the raw folder."""
    raw = root / "raw" / NAME
    turned = tuple(reversed(shape))
    label = np.zeros(turned, np.uint8)
    for value, box in zip(range(1, labels + 1), _boxes(turned, labels), strict=False):
        label[box] = value
    image = np.full(turned, -1000, np.int16)
    body = tuple(slice(size // 16, size - size // 16) for size in turned)
    rng = np.random.default_rng(0)
    for plane, values in zip(image[body], label[body], strict=True):
        plane[:] = values.astype(np.int16) * 10 + rng.integers(-20, 20, plane.shape, np.int16)
    geometry = Geometry.from_spacing(turned, (1.0, 0.8, 0.8))
    write_volume(raw / "imagesTr" / "ct_0000.nii.gz", image, geometry)
    write_volume(raw / "labelsTr" / "ct.nii.gz", label, geometry)
    _describe(raw, 1, labels)
    return raw


def _boxes(shape: Sequence[int], labels: int) -> Iterator[tuple[slice, ...]]:
    """Places in a grid of at least so many cells."""
    per_axis = 1
    while per_axis**3 < labels:
        per_axis += 1
    for cell in np.ndindex(per_axis, per_axis, per_axis):
        inner = []
        for index, size in zip(cell, shape, strict=True):
            step = size // (per_axis + 1)
            inner.append(slice(step // 2 + index * step, step // 2 + index * step + max(step * 2 // 3, 1)))
        yield tuple(inner)


def _add_coarse(root: Path, factor: float) -> None:
    """A configuration of one's own with larger voxels and a tiny network, as a user may add one to ``plans.json``."""
    path = root / "preprocessed" / NAME / "plans.json"
    plan = Plan.load(path)
    full = plan.configurations["3d_fullres"]
    network = full.architectures["plain_unet"]
    depth = len(network.features_per_stage)
    tiny = replace(network, features_per_stage=tuple(4 for _ in range(depth)), patch_size=(32,) * 3)
    strides = tuple(stride if number < 3 else (1, 1, 1) for number, stride in enumerate(network.strides))
    coarse = replace(
        full,
        name=_COARSE,
        spacing=tuple(value * factor for value in full.spacing),
        median_shape=tuple(max(1, round(size / factor)) for size in full.median_shape),
        architectures={"plain_unet": replace(tiny, strides=strides)},
    )
    save(path, replace(plan, configurations={**plan.configurations, _COARSE: coarse}))


def of_cases(root: Path, cases: int, command: Command = measured) -> dict[str, Cost]:
    """Every stage with so many small cases.

    Raises:
        RuntimeError: a stage failed, or left a case out.
    """
    raw = write_small_cases(root, cases)
    place = ("--root", root)
    costs = {
        "verify, plan and preprocess": command("plan_and_preprocess", "-d", 1, "-c", "3d_fullres", "-np", 1, *place)
    }
    command("train", 1, "plain_unet", "all", "--width-divisor", 8, *_BUDGET, "--no-validate", *place)
    (run,) = (root / "results" / NAME).iterdir()
    costs["predict"] = command(
        "predict", "-i", raw / "imagesTr", "-o", root / "predicted", "-m", run, "--no-tta", "--device", "cpu", *place
    )
    costs["evaluate"] = command("evaluate", raw / "labelsTr", root / "predicted", "-o", root / "summary.json", *place)
    found = len(read_json(root / "summary.json")["metric_per_case"])
    if found != cases:
        raise RuntimeError(f"{found} of {cases} cases were scored")
    return costs


def of_sizes(root: Path, sizes: Sequence[int], command: Command = measured) -> Iterator[tuple[int, dict[str, Cost]]]:
    """Preprocessing and prediction of a few scans of each size, all by the plan and the network of the first size.

    Raises:
        RuntimeError: a stage failed.
    """
    run: Path | None = None
    for size in sizes:
        place = root / str(size)
        raw = write_small_cases(place, _SCANS, size)
        if run is not None:
            (place / "preprocessed" / NAME).mkdir(parents=True)
            first, own = (folder / "preprocessed" / NAME / "plans.json" for folder in (root / str(sizes[0]), place))
            shutil.copy(first, own)
        words = ("plan_and_preprocess", "-d", 1, "-c", "3d_fullres", "-np", 1, "--root", place)
        costs = {"verify, plan and preprocess": command(*words)}
        if run is None:
            command("train", 1, "plain_unet", "all", "--width-divisor", 8, *_BUDGET, "--no-validate", "--root", place)
            (run,) = (place / "results" / NAME).iterdir()
        wanted = ("-i", raw / "imagesTr", "-o", place / "predicted", "-m", run, "--no-tta", "--device", "cpu")
        costs["predict"] = command("predict", *wanted, "--root", place)
        words = ("evaluate", raw / "labelsTr", place / "predicted", "-o", place / "summary.json", "--root", place)
        costs["evaluate"] = command(*words)
        yield size, costs


def of_ct(
    root: Path, shape: Sequence[int], labels: int, factor: float = 8.0, command: Command = measured
) -> dict[str, Cost]:
    """Every stage with one large CT; the network sees it with voxels larger by a factor.

    Raises:
        RuntimeError: a stage failed, or left a structure out.
    """
    raw = write_ct(root / "source", shape, labels)
    place = ("--root", root)
    costs = {"convert and verify": command("convert", "nnunet", raw, "-d", 1, "--name", "Scale", *place)}
    costs["plan and preprocess, as stored"] = command(
        "plan_and_preprocess", "-d", 1, "-c", "3d_fullres", "-np", 1, "--no-verify", *place
    )
    _add_coarse(root, factor)
    costs["preprocess, coarse"] = command(
        "plan_and_preprocess", "-d", 1, "-c", _COARSE, "-np", 1, "--no-verify", *place
    )
    command("train", 1, "plain_unet", "all", "-c", _COARSE, *_BUDGET, "--no-validate", *place)
    (run,) = (root / "results" / NAME).iterdir()
    costs["predict"] = command(
        "predict", "-i", raw / "imagesTr", "-o", root / "predicted", "-m", run, "--no-tta", "--device", "cpu", *place
    )
    costs["evaluate"] = command("evaluate", raw / "labelsTr", root / "predicted", "-o", root / "summary.json", *place)
    (scored,) = read_json(root / "summary.json")["metric_per_case"]
    if len(scored["metrics"]) != labels:
        raise RuntimeError(f"{len(scored['metrics'])} of {labels} structures were scored")
    return costs


def _show(title: str, costs: dict[str, Cost], cases: int) -> None:
    print(title)
    for stage, cost in costs.items():
        per_case = 1000 * cost.processor / cases
        print(
            f"  {stage:32} {cost.seconds:9.2f} s  {cost.processor:9.2f} processor s  {per_case:10.1f} ms a case  "
            f"{cost.peak_mib:8.1f} MiB"
        )


def _small_cases(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for cases in options.cases:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            costs = of_cases(Path(folder), cases)
        _show(f"{cases} cases of 16 x 16 x 16", costs, cases)
        results[f"{cases} cases"] = {stage: asdict(cost) for stage, cost in costs.items()}
    return results


def _few_scans(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    if options.sizes:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            for size, costs in of_sizes(Path(folder), options.sizes):
                _show(f"{_SCANS} scans of {size} x {size} x {size}", costs, _SCANS)
                results[f"{_SCANS} scans of {size} ^3"] = {stage: asdict(cost) for stage, cost in costs.items()}
    return results


def _one_ct(options: argparse.Namespace) -> dict[str, Any]:
    if not options.ct:
        return {}
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        costs = of_ct(Path(folder), options.ct, options.labels)
    size = " x ".join(map(str, options.ct))
    _show(f"a CT of {size} with {options.labels} structures", costs, 1)
    return {f"CT {size}, {options.labels} structures": {stage: asdict(cost) for stage, cost in costs.items()}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[], help="numbers of small cases")
    parser.add_argument("--sizes", type=int, nargs="+", default=[], help="voxels along each axis of a few scans")
    parser.add_argument("--ct", type=int, nargs=3, metavar=("X", "Y", "Z"), help="size of the CT")
    parser.add_argument("--labels", type=int, default=60, help="structures of the CT")
    parser.add_argument("--work", type=Path, help="folder for temporary data (default: the system's)")
    options = parser.parse_args()
    if not options.cases and not options.ct and not options.sizes:
        parser.error("nothing to measure: give --cases, --sizes or --ct")
    results = {**_small_cases(options), **_few_scans(options), **_one_ct(options)}
    results["load average"] = os.getloadavg()[0]
    older = read_json(OUTPUT) if OUTPUT.exists() else {}
    write_json(OUTPUT, {**older, **results, "machine": machine("nibabel", "SimpleITK", "scipy")})
    print(f"written: {OUTPUT}")


if __name__ == "__main__":
    main()
