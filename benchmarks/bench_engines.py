"""What a patch of a model costs in torch as it comes, in torch as medkd tunes it, and in other engines, on one thread.

    python -m benchmarks.bench_engines MODEL

They take turns; processor seconds are what other programs disturb least. Errors are those of the logits of a random
patch against float64, root mean square, as a share of their standard deviation. Writes
benchmarks/results/engines.json.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import RESULTS, machine
from medkd.core.allocator import reuse_freed_memory
from medkd.core.files import write_json
from medkd.inference import tuning
from medkd.inference.converted import EngineChoice, EnginePlace, in_engine
from medkd.models.base import open_model
from medkd.networks.complexity import count_macs

Forward = Callable[[Tensor], Tensor]
OTHERS: tuple[EngineChoice, ...] = ("openvino", "onnxruntime")


class Direct:
    """A tuned network whose convolutions take all multiplications."""

    def __init__(self, network: Forward) -> None:
        self.network = network

    def __call__(self, x: Tensor) -> Tensor:
        """The logits."""
        pays, tuning.pays = tuning.pays, lambda shape, outputs: False
        try:
            return self.network(x)
        finally:
            tuning.pays = pays


def contenders(model: Path, fold: str) -> tuple[dict[str, Forward], Tensor, Tensor, int]:
    """Everything that computes the model, a patch, its logits in float64, and the multiplications of a patch."""
    loaded = open_model(model, "segmentation").load([fold])
    (network,), channels = loaded.networks, len(loaded.configuration.normalization)
    patch = torch.randn(1, channels, *loaded.patch_size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        exact = copy.deepcopy(network).double()(patch.double())
    place = EnginePlace(torch.device("cpu"), "fp32", 1)
    found: dict[str, Forward] = {"torch as it comes": copy.deepcopy(network)}
    for engine in OTHERS:
        made = in_engine([network], channels, loaded.patch_size, engine, place)
        if made is not None:
            found[engine] = made
    tuned = tuning.tune(network, place.device)
    found |= {"torch tuned, all multiplications": Direct(tuned), "torch tuned": tuned}
    return found, patch, exact, count_macs(network, tuple(patch.shape))


def main() -> None:
    """Run the benchmark and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--fold", default="0")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--output", type=Path, default=RESULTS / "engines.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reuse_freed_memory()
    found, patch, exact, products = contenders(options.model, options.fold)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    errors: dict[str, float] = {}
    load = [os.getloadavg()[0]]
    with torch.inference_mode():
        for turn in range(options.turns + 1):
            for name, run in found.items():
                forward = partial(run, patch)
                begin = time.process_time()
                answer = forward()
                if turn:
                    seconds[name].append(time.process_time() - begin)
                errors[name] = float((answer - exact).square().mean().sqrt() / exact.std())
    load.append(os.getloadavg()[0])
    rows: dict[str, Any] = {}
    for name, times in seconds.items():
        rows[name] = {"seconds": times, "median": median(times), "minimum": min(times), "error": errors[name]}
        print(f"{name:34} {min(times):.3f} s (median {median(times):.3f})  error {errors[name]:.1e}")
    content = {
        "machine": {**machine("openvino", "onnxruntime"), "threads": 1},
        "load_average": load,
        "patch": list(patch.shape),
        "multiply_adds": products,
        "processor_seconds": rows,
    }
    write_json(options.output, content)


if __name__ == "__main__":
    main()
