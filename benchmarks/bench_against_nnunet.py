"""medkd's prediction against nnU-Net's own: the same model folder, the same scans, the same cores, in one run.

    python -m benchmarks.bench_against_nnunet MODEL SCANS --nnunet-python OTHER_ENVIRONMENT/bin/python

nnU-Net lives in an environment of its own. Both are started as commands, so the times hold all that a user waits for:
start, reading, preprocessing, network, export, writing. They take turns, since other programs on the machine then slow
both down; the ratio of the processor times is what such programs disturb least. --core holds both on one core, with
one thread. Writes benchmarks/results/against_nnunet.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.measure import RESULTS, machine
from medkd.core.dataset import DatasetDescription
from medkd.core.files import write_json
from medkd.io.volumes import read_label

VERSIONS = (
    "import json, sys, platform, importlib.metadata as m; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
)
NNUNET = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as main; main()"


def command(program: str, options: argparse.Namespace, mirror: bool, scans: Path, output: Path) -> list[str]:
    """The command line of one prediction of all scans."""
    if program == "nnunet":
        start = [str(options.nnunet_python), "-c", NNUNET]
        extra = ["-device", "cpu", *([] if mirror else ["--disable_tta"])]
    else:
        start = [sys.executable, "-m", "medkd.cli.predict"]
        extra = [
            "--device",
            "cpu",
            "--tta" if mirror else "--no-tta",
            *(["--precision", options.precision] if options.precision else []),
            *(["--engine", options.engine] if options.engine else []),
        ]
    return [*start, "-i", str(scans), "-o", str(output), "-m", str(options.model), "-f", options.fold, *extra]


def timed(line: Sequence[str], threads: int, core: int | None) -> tuple[float, float]:
    """Wall seconds, and processor seconds (user and system, all of its own processes included), of a command.

    Args:
        line: the command.
        threads: of OpenMP, and nnU-Net's worker processes.
        core: the only one that it may use; None for all.

    Raises:
        RuntimeError: the command failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "nnUNet_def_n_proc": str(threads)}
    line = [*([] if core is None else ["taskset", "-c", str(core)]), *line]
    for name in ("raw", "preprocessed", "results"):  # nnU-Net wants them set, prediction does not use them
        environment.setdefault(f"nnUNet_{name}", tempfile.gettempdir())
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)} failed:\n{done.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def agreement(ours: Path, theirs: Path, values: Sequence[int], ending: str) -> dict[str, float]:
    """Smallest and mean Dice between both programs' label maps, over cases and label values that either has."""
    found = []
    for path in sorted(theirs.glob(f"*{ending}")):
        a, b = read_label(ours / path.name).array, read_label(path).array
        sizes = [(int(((a == v) & (b == v)).sum()), int((a == v).sum() + (b == v).sum())) for v in values]
        found += [2 * both / total for both, total in sizes if total]
    return {"minimum": min(found), "mean": float(np.mean(found)), "pairs": len(found)}


def compare(options: argparse.Namespace, mirror: bool, scans: Path, folder: Path) -> dict[str, Any]:
    """Run both programs in turn and compare times and label maps."""
    runs: dict[str, list[tuple[float, float]]] = {"medkd": [], "nnunet": []}
    for turn in range(options.repeats):
        for program in ("medkd", "nnunet") if turn % 2 else ("nnunet", "medkd"):
            line = command(program, options, mirror, scans, folder / f"{program}_{mirror}")
            runs[program].append(timed(line, options.threads, options.core))
            print(
                f"{program}, mirroring {mirror}: {runs[program][-1][0]:.1f} s, {runs[program][-1][1]:.1f} processor s",
                flush=True,
            )
    description = DatasetDescription.load(options.model / "dataset.json")
    values = [v for v in description.labels.values if v]
    result: dict[str, Any] = {
        "load_average_behind": os.getloadavg()[0],
        "dice": agreement(folder / f"medkd_{mirror}", folder / f"nnunet_{mirror}", values, description.file_ending),
    }
    for which, key in ((0, "wall"), (1, "processor")):
        own, other = ([run[which] for run in runs[program]] for program in ("medkd", "nnunet"))
        ratios = [a / b for a, b in zip(own, other, strict=True)]
        result[f"{key}_seconds"] = {"medkd": spread(own), "nnunet": spread(other)}
        result[f"{key}_ratio"] = {"pairs": ratios, "median": median(ratios), "of_minima": min(own) / min(other)}
    return result


def spread(times: list[float]) -> dict[str, Any]:
    """All times, the smallest and the middle one."""
    return {"all": times, "minimum": min(times), "median": median(times)}


def main() -> None:
    """Run the benchmark and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="nnU-Net v2 model folder")
    parser.add_argument("scans", type=Path, help="folder of scans")
    parser.add_argument("--nnunet-python", type=Path, required=True, help="Python of the environment that has nnunetv2")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--cases", type=int, help="only the first so many scans")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", help="of medkd; default fp32")
    parser.add_argument("--engine", help="of medkd; default torch")
    parser.add_argument("--core", type=int, help="the only core that both may use (with --threads 1)")
    parser.add_argument("--mirror", choices=("both", "on", "off"), default="both")
    parser.add_argument("--output", type=Path, default=RESULTS / "against_nnunet.json")
    options = parser.parse_args()
    versions = subprocess.run(
        [str(options.nnunet_python), "-c", VERSIONS, "nnunetv2", "torch", "numpy"],
        capture_output=True,
        text=True,
        check=True,
    )
    modes = {"both": (False, True), "on": (True,), "off": (False,)}[options.mirror]
    content: dict[str, Any] = {
        "machine": {**machine("openvino"), "threads": options.threads, "cores_used": options.core},
        "load_average_before": os.getloadavg()[0],
        "nnunet_versions": json.loads(versions.stdout),
    }
    with tempfile.TemporaryDirectory() as name:
        scans = Path(name) / "scans"
        scans.mkdir()
        chosen = sorted(options.scans.glob("*_0000.*"))[: options.cases]
        if not chosen:
            parser.error(f"{options.scans} holds no scans CASE_0000.nii.gz")
        for path in (p for first in chosen for p in options.scans.glob(first.name.replace("_0000.", "_*."))):
            (scans / path.name).symlink_to(path.absolute())
        content |= {"cases": len(chosen), "repeats": options.repeats, "precision": options.precision or "fp32"}
        content |= {"engine": options.engine or "torch"}
        for mirror in modes:
            content["mirroring" if mirror else "no mirroring"] = compare(options, mirror, scans, Path(name))
    write_json(options.output, content)


if __name__ == "__main__":
    main()
