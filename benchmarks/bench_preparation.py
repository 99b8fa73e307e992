"""Verifying, planning and preprocessing a raw data set: medkd's command against nnU-Net's, from start to end.

    python -m benchmarks.bench_preparation IMAGES_AND_LABELS DATASET_JSON --nnunet-python OTHER_ENVIRONMENT/bin/python

Both take turns on one core with one process, so that other programs disturb both alike; the processor's seconds are
what they disturb least. Memory is the sum over a command's processes. Writes benchmarks/results/preparation.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.measure import RESULTS, machine
from medkd.core.files import read_json, write_json

NAME = "Dataset004_Hippocampus"
CONFIGURATION = "3d_fullres"
_NNUNET = "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as m; m()"
_VERSION = "import importlib.metadata as m; print(m.version('nnunetv2'))"


def measured(line: Sequence[str], environment: Mapping[str, str], core: int) -> dict[str, float]:
    """Wall and processor seconds and peak memory (MiB) of a command with all of its processes, on one core.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    begin, peak, seconds = time.perf_counter(), 0.0, 0.0
    with tempfile.TemporaryFile("w+") as said:
        process = psutil.Popen(
            ["taskset", "-c", str(core), *line],
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        while process.poll() is None:
            memory = 0.0
            for one in (process, *_children(process)):
                with contextlib.suppress(psutil.Error):
                    memory += one.memory_full_info().pss / 2**20
            peak = max(peak, memory)
            time.sleep(0.1)
        said.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(line)} ended with {process.returncode}: {said.read()[-2000:]}")
        seconds = time.perf_counter() - begin
    return {"seconds": round(seconds, 2), "peak_mib": round(peak, 1)}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def of_program(program: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Prepare the data set in an empty folder with one of the programs."""
    raw = folder / "raw" / NAME
    raw.mkdir(parents=True)
    for part in ("imagesTr", "labelsTr"):
        (raw / part).symlink_to((options.data / part).absolute())
    count = len(list((options.data / "labelsTr").iterdir()))
    write_json(raw / "dataset.json", {**read_json(options.description), "numTraining": count})
    environment = {"OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1"}
    for name in ("raw", "preprocessed", "results"):
        environment[f"nnUNet_{name}"] = str(folder / name)
    if program == "nnunet":
        line = [str(options.nnunet_python), "-c", _NNUNET, "-d", "4", "-c", CONFIGURATION, "-npfp", "1", "-np", "1"]
        line.append("--verify_dataset_integrity")
    else:
        line = [sys.executable, "-m", "medkd", "plan_and_preprocess", "-d", "4", "-c", CONFIGURATION, "-np", "1"]
        line += ["--root", str(folder)]
    before = os.times()
    found = measured(line, environment, options.core)
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {**found, "processor": round(processor, 2), "cases": count}


def main() -> None:
    """Run the benchmark and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with imagesTr and labelsTr")
    parser.add_argument("description", type=Path, help="dataset.json")
    parser.add_argument("--nnunet-python", type=Path, required=True, help="Python of the environment that has nnunetv2")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "preparation.json")
    options = parser.parse_args()
    line = [str(options.nnunet_python), "-c", _VERSION]
    theirs = subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    runs: dict[str, list[dict[str, float]]] = {"medkd": [], "nnunet": []}
    load = [os.getloadavg()[0]]
    for turn in range(options.repeats):
        for program in ("medkd", "nnunet") if turn % 2 == 0 else ("nnunet", "medkd"):
            with tempfile.TemporaryDirectory() as name:
                runs[program].append(of_program(program, options, Path(name)))
            print(program, json.dumps(runs[program][-1]), flush=True)
            load.append(os.getloadavg()[0])
    content: dict[str, Any] = {
        "machine": {**machine("nibabel", "SimpleITK"), "threads": 1, "cores_used": 1},
        "nnunetv2": theirs,
        "configuration": CONFIGURATION,
        "load_average": load,
        "runs": runs,
    }
    for key in ("seconds", "processor", "peak_mib"):
        ours, others = (median(run[key] for run in runs[program]) for program in ("medkd", "nnunet"))
        content[f"{key}_nnunet_over_medkd"] = round(others / ours, 2)
    write_json(options.output, content)


if __name__ == "__main__":
    main()
