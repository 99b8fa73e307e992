"""Peak memory of predicting one large CT, by the number of structures, beside the feature maps of the network itself.

    python -m benchmarks.bench_memory --structures 14 60

In the place of a network stands one layer, whose outputs are as large as a network's: what is measured is the scan,
its preprocessing, the sliding window and the way back. ``--network plain_unet --spacing 1.5`` measures a teacher with
its feature maps, ``--network plain_unet --width-divisor 4`` a student. Each number is a process of its own on one
thread. Writes benchmarks/results/memory.json, memory_NETWORK.json or memory_NETWORK_wDIVISOR.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bench_prediction import small_predictor
from benchmarks.big_ct import SPACING, architecture
from benchmarks.measure import RESULTS, machine
from medkd.core.allocator import reuse_freed_memory
from medkd.core.files import write_json
from medkd.core.geometry import Geometry
from medkd.core.run import NetworkSpec
from medkd.inference import predictor as predictor_module
from medkd.inference.tuning import tune
from medkd.models.weights import freeze
from medkd.networks import build_network

PATCH = (96, 128, 128)
TEACHER_PATCH = (96, 160, 160)
FEATURES = (32, 64, 128, 256, 320)


class Outputs(nn.Module):
    """As many outputs as asked for, of one channel, in one pass."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.linspace(-1, 1, count), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 1, *patch) → (B, K, *patch)``."""
        return x * self.slope.view(-1, 1, 1, 1)


def planned(name: str, outputs: int, divisor: int) -> nn.Module:
    """A planned network with random weights, as prediction runs it."""
    shape = architecture(TEACHER_PATCH, FEATURES)
    spec = NetworkSpec(
        name=name,
        in_channels=1,
        num_outputs=outputs,
        patch_size=shape.patch_size,
        architecture=shape,
        width_divisor=divisor,
    )
    return tune(freeze(build_network(spec)), torch.device("cpu"))


def peak(options: argparse.Namespace) -> dict[str, float]:
    """Predict a scan in this process; seconds of the processor and MiB."""
    torch.set_num_threads(1)
    reuse_freed_memory()  # as medkd_predict does
    if options.whole:
        predictor_module.WHOLE_BYTES = 2**62
    outputs, shape = options.one + 1, tuple(options.shape)
    predictor = small_predictor(outputs, 32, options.spacing, mirror=False)
    if options.network:
        predictor.networks = [planned(options.network, outputs, options.width_divisor)]
        predictor.patch_size = TEACHER_PATCH
    else:
        predictor.networks, predictor.patch_size = [Outputs(outputs)], PATCH
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    image = np.random.default_rng(0).integers(-100, 300, (1, *shape), np.int16).astype(np.float32)
    begin = time.process_time()
    prepared = predictor.prepare("ct", image, Geometry.from_spacing(shape, SPACING), overwrite=True)
    del image
    labels = predictor.predict(prepared).labels
    if labels.shape != shape:
        raise RuntimeError(f"expected a label map of {shape}, found {labels.shape}")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"processor_seconds": time.process_time() - begin, "peak_mib": after, "before_mib": before}


def main() -> None:
    """Run the benchmark and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(500, 512, 512))
    parser.add_argument("--spacing", type=float, default=3.0, help="the network's voxels in mm")
    parser.add_argument("--structures", type=int, nargs="+", default=(14, 60))
    parser.add_argument("--whole", action="store_true", help="hold the logits of the whole case, as before")
    parser.add_argument("--network", help="a planned network in the place of the layer")
    parser.add_argument("--width-divisor", type=int, default=1, help="of that network's channels")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(peak(options)))
        return
    rows: dict[str, Any] = {}
    load = os.getloadavg()[0]
    for structures in options.structures:
        line = [sys.executable, "-m", "benchmarks.bench_memory", "--one", str(structures)]
        line += ["--shape", *map(str, options.shape), "--spacing", str(options.spacing)]
        line += ["--whole"] if options.whole else []
        if options.network:
            line += ["--network", options.network, "--width-divisor", str(options.width_divisor)]
        said = subprocess.run(line, capture_output=True, text=True, check=True)
        rows[f"{structures} structures"] = json.loads(said.stdout)
        print(structures, said.stdout.strip(), flush=True)
    kinds = ["memory", *(["whole"] if options.whole else []), *([options.network] if options.network else [])]
    kinds += [f"w{options.width_divisor}"] if options.width_divisor > 1 else []
    path = RESULTS / f"{'_'.join(kinds)}.json"
    patch = TEACHER_PATCH if options.network else PATCH
    settings = {"shape": list(options.shape), "network_mm": options.spacing, "patch": list(patch)}
    where = {**machine(), "threads": 1}
    write_json(path, {"machine": where, "load_average": [load, os.getloadavg()[0]], **settings, **rows})


if __name__ == "__main__":
    main()
