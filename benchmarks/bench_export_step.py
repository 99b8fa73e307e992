"""From logits on the network's grid to a label map on the scan's: medkd's step against nnU-Net's, by structures.

    python -m benchmarks.bench_export_step --nnunet-python OTHER_ENVIRONMENT/bin/python

nnU-Net's step is its own resampling of logits (order 1, as its plans say) and its argmax, called as its export does.
medkd's begins at the same logits, and at the features of which they were made, whose last layer is left for the end
(:mod:`medkd.inference.late_head`). Each measurement is a process of its own on one thread. Writes
benchmarks/results/export_step.json.
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
from typing import Any

import numpy as np

from benchmarks.measure import RESULTS, machine
from medkd.core.files import write_json

# run in nnU-Net's environment, which has no medkd
_NNUNET = """
import resource, sys, time
import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
torch.set_num_threads(1)
logits, target, result = np.load(sys.argv[1]), [int(v) for v in sys.argv[3:6]], sys.argv[2]
coarse, fine = float(sys.argv[6]), float(sys.argv[7])
before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
resampled = resample_data_or_seg_to_shape(
    logits, target, [coarse] * 3, [fine] * 3, is_seg=False, order=1, order_z=0, force_separate_z=None
)
labels = torch.as_tensor(resampled).argmax(0).numpy().astype(np.uint8)
print(time.process_time() - begin, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
np.save(result, labels)
"""


def own_step(
    source: Path, result: Path, target: Sequence[int], coarse: float, fine: float, late: bool
) -> tuple[float, float]:
    """Processor seconds and added peak memory (MiB) of medkd's step, from logits or from features and a last layer."""
    import torch

    from benchmarks.bench_prediction import small_predictor
    from medkd.core.allocator import reuse_freed_memory
    from medkd.core.geometry import Geometry
    from medkd.core.labels import LabelSpec
    from medkd.inference.export import logits_to_labels
    from medkd.inference.late_head import LateHead
    from medkd.preprocessing.properties import CaseProperties

    torch.set_num_threads(1)
    reuse_freed_memory()  # as medkd_predict does
    head, maps = None, np.load(source)
    outputs = len(maps)
    if late:
        weight, maps = (np.load(source.with_name(f"{name}.npy")) for name in ("weight", "features"))
        head = LateHead((), torch.from_numpy(weight), torch.zeros(outputs, 1))
    predictor = small_predictor(3, 16, coarse, mirror=False)
    labels = LabelSpec.from_names([f"structure {number}" for number in range(1, outputs)])
    crop = tuple((0, side) for side in target)
    properties = CaseProperties("case", Geometry.from_spacing(tuple(target), (fine,) * 3), crop, maps.shape[1:])
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = logits_to_labels(maps, properties, predictor.plan, predictor.configuration, labels, head)
    spent = time.process_time() - begin
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.save(result, found)
    return spent, (after - before) / 1024


def smooth_features(channels: int, shape: Sequence[int]) -> np.ndarray:
    """Features ``(channels, *shape)`` with coherent regions."""
    from scipy.ndimage import zoom

    numbers = np.random.default_rng(0)
    found = np.empty((channels, *shape), np.float32)
    for channel in found:
        coarse = numbers.normal(0, 5, [max(2, side // 12) for side in shape])
        channel[:] = zoom(coarse, [n / c for n, c in zip(shape, coarse.shape, strict=True)], order=1)
    return found


def compare(structures: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All steps on the same logits."""
    target, factor = tuple(options.shape), options.coarse / options.fine
    features = smooth_features(options.features, [round(side / factor) for side in target])
    weight = np.random.default_rng(1).normal(size=(structures + 1, options.features)).astype(np.float32)
    logits = np.tensordot(weight, features, 1)
    source = folder / "logits.npy"
    for path, values in ((source, logits), (folder / "features.npy", features), (folder / "weight.npy", weight)):
        np.save(path, values)
    found: dict[str, Any] = {"network_grid": list(logits.shape[1:])}
    numbers = [*map(str, target), str(options.coarse), str(options.fine)]
    lines = {
        "medkd": [sys.executable, "-m", "benchmarks.bench_export_step", "--one"],
        "medkd_from_features": [sys.executable, "-m", "benchmarks.bench_export_step", "--one-late"],
        "nnunet": [str(options.nnunet_python), "-c", _NNUNET],
    }
    for program, line in lines.items():
        whole = [*line, str(source), str(folder / f"{program}.npy"), *numbers]
        said = subprocess.run(
            whole, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        seconds, memory = map(float, said.stdout.split()[-2:])
        found[program] = {"processor_seconds": round(seconds, 3), "added_peak_mib": round(memory, 1)}
    theirs, seconds = np.load(folder / "nnunet.npy"), found["nnunet"]["processor_seconds"]
    for program in ("medkd", "medkd_from_features"):
        own = found[program]
        own["voxels_that_differ"] = float(np.mean(np.load(folder / f"{program}.npy") != theirs))
        own["nnunet_over_this"] = round(seconds / own["processor_seconds"], 1)
    print(structures, json.dumps(found), flush=True)
    return found


def main() -> None:
    """Run the benchmark and write the results."""
    if sys.argv[1:2] in (["--one"], ["--one-late"]):
        source, result, *numbers = sys.argv[2:]
        target, (coarse, fine) = [int(v) for v in numbers[:3]], map(float, numbers[3:])
        print(*own_step(Path(source), Path(result), target, coarse, fine, sys.argv[1] == "--one-late"))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet-python", type=Path, required=True, help="Python of the environment that has nnunetv2")
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 256, 256), help="of the scan")
    parser.add_argument("--coarse", type=float, default=1.5, help="the network's voxels in mm")
    parser.add_argument("--fine", type=float, default=0.8, help="the scan's")
    parser.add_argument("--structures", type=int, nargs="+", default=(14, 60))
    parser.add_argument("--features", type=int, default=8, help="channels before the last layer")
    parser.add_argument("--output", type=Path, default=RESULTS / "export_step.json")
    options = parser.parse_args()
    rows = {}
    load = os.getloadavg()[0]
    for structures in options.structures:
        with tempfile.TemporaryDirectory() as name:
            rows[f"{structures} structures"] = compare(structures, options, Path(name))
    settings = {
        "shape": list(options.shape),
        "coarse_mm": options.coarse,
        "fine_mm": options.fine,
        "features": options.features,
    }
    where = {**machine("scipy", "scikit-image"), "threads": 1}
    content = {"machine": where, "load_average": [load, os.getloadavg()[0]], **settings, **rows}
    write_json(options.output, content)


if __name__ == "__main__":
    main()
