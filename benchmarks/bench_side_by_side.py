"""What several methods at once cost, beside one after another, with a teacher that is much larger than its student.

    python -m benchmarks.bench_side_by_side benchmarks/results/side_by_side_32x40x32.json

Everything goes through ``medkd.train_distill`` and ``medkd.train_side_by_side``, on a phantom and the CPU. The cost of
a step is what further steps of a training add, in processor seconds, so that starting and saving are left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import medkd
from benchmarks.measure import machine
from dataset_conversion.phantom import make_phantom
from medkd.core.files import write_json

TEACHER, STUDENT = "res_unet", "unet_tiny"
METHODS = ("kd", "cwd", "dkd", "at")
COUNTS = (2, 4)
SHORT, LONG = 1, 9


def processor_seconds(methods: Sequence[str], steps: int, options: dict[str, Any]) -> float:
    """Of a training of so many steps."""
    common = {**options, "iterations_per_epoch": steps, "overwrite": True, "validate": False}
    begun = time.process_time()
    if len(methods) == 1:
        medkd.train_distill(4, TEACHER, STUDENT, methods[0], 0, **common)
    else:
        medkd.train_side_by_side(4, TEACHER, STUDENT, methods, 0, **common)
    return time.process_time() - begun


def per_step(methods: Sequence[str], options: dict[str, Any]) -> float:
    """Processor seconds of a step of all methods together."""
    return (processor_seconds(methods, LONG, options) - processor_seconds(methods, SHORT, options)) / (LONG - SHORT)


def measured(root: Path, patch: tuple[int, ...]) -> dict[str, Any]:
    """Costs of each method alone, and of the first two and of all of them together."""
    make_phantom(root / "raw" / "Dataset004_Phantom", cases=3, shape=(40, 56, 56))
    medkd.plan_and_preprocess(4, root=root, configurations=["3d_fullres"], orientation="RAS")
    options: dict[str, Any] = {"root": root, "epochs": 1, "batch_size": 2, "patch_size": patch, "workers": 0}
    options["device"] = "cpu"
    medkd.train(4, TEACHER, 0, iterations_per_epoch=1, validate=False, **options)
    alone = {method: per_step([method], options) for method in METHODS}
    together = {}
    for count in COUNTS:
        chosen = METHODS[:count]
        seconds = per_step(chosen, options)
        one = mean(alone[method] for method in chosen)
        together[str(count)] = {"seconds": seconds, "of_one": seconds / one, "wish": 1 + count / 4}
    return {"each_alone": alone, "together": together}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--patch-size", type=int, nargs=3, default=(32, 40, 32))
    options = parser.parse_args()
    with TemporaryDirectory() as root:
        found = measured(Path(root), tuple(options.patch_size))
    content = {"teacher": TEACHER, "student": STUDENT, "patch_size": list(options.patch_size), "machine": machine()}
    write_json(options.output, content | found)
    for count, row in found["together"].items():
        print(f"{count} methods: {row['of_one']:.2f} times one (wish: below {row['wish']:g})")


if __name__ == "__main__":
    main()
