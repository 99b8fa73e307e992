"""What torch's switches for speed cost and change: a short training with each of them, on the same patches.

    python -m benchmarks.bench_switches                                  unet_tiny, 40x56x40, batch 2, 3 classes
    python -m benchmarks.bench_switches --device cuda --precision fp32   the switches of CUDA, too

The trainings take turns step by step, so that other programs disturb them alike. Times are processor seconds on the
CPU, else seconds until the device is done; the first steps, in which torch compiles and cuDNN tries, are counted apart.
``losses`` is the largest relative difference of a step's loss to the plain training's, ``logits`` the largest
difference of the outputs at the end over their standard deviation. Two plain trainings show what differs by itself.
Writes benchmarks/results/switches_<device>.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_distillation_step import organs
from benchmarks.bench_training import network_of
from benchmarks.measure import RESULTS, machine
from medkd.core.files import write_json
from medkd.core.speed import USUAL, Speed
from medkd.training.losses import SegmentationLoss
from medkd.training.speed import compile_in_place, laid_out, lay_out, switched

EVERYWHERE = {
    "plain": USUAL,
    "plain again": USUAL,
    "channels last": Speed(channels_last=True),
    "compile": Speed(compile=True),
    "channels last, compile": Speed(channels_last=True, compile=True),
}
ON_CUDA = {
    "TF32 on": Speed(tf32=True),
    "TF32 off": Speed(tf32=False),
    "cudnn.benchmark": Speed(cudnn_benchmark=True),
    "channels last, cudnn.benchmark": Speed(channels_last=True, cudnn_benchmark=True),
}
_FIRST = 3  # steps that are counted apart
_DTYPES = {"fp32": None, "bf16": torch.bfloat16}


class Training:
    """A student with its switches."""

    def __init__(self, speed: Speed, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.speed, self.device = speed, torch.device(options.device)
        self.dtype = _DTYPES[options.precision]
        self.network = network_of(options.student, tuple(options.patch), options.classes).to(self.device).train()
        lay_out([self.network], speed)
        if speed.compile:
            compile_in_place(self.network)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.01, 0.9, nesterov=True)
        self.loss = SegmentationLoss(regions=False, batch_dice=False)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, image: Tensor, labels: Tensor) -> None:
        """One step, timed."""
        begun = self._now()
        with switched(self.speed):
            terms = self.loss(self.outputs(image), labels)
            total = torch.stack(list(terms.values())).sum()
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12.0)
            self.optimizer.step()
        self.seconds.append(self._now() - begun)
        self.losses.append(float(total))

    def outputs(self, image: Tensor) -> Tensor:
        """The network's."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            found: Tensor = self.network(laid_out(image, self.speed))
        return found

    def _now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All trainings, step by step in turns."""
    kinds = {**EVERYWHERE, **(ON_CUDA if options.device != "cpu" else {})}
    trainings = {name: Training(speed, options) for name, speed in kinds.items()}
    torch.manual_seed(1)
    for number in range(_FIRST + options.steps):
        image, target = organs(tuple(options.patch), options.classes, options.batch, False)
        image, labels = image.to(options.device), target.labels.to(options.device)
        for training in trainings.values():
            training.step(image, labels)
        print(f"step {number}: " + ", ".join(f"{t.seconds[-1]:.3f}" for t in trainings.values()), flush=True)
    return compared(trainings, image)


def compared(trainings: dict[str, Training], image: Tensor) -> dict[str, Any]:
    """Every training beside the first one."""
    first = next(iter(trainings.values()))
    with torch.no_grad():
        wanted = first.outputs(image).float()
    rows: dict[str, Any] = {}
    for name, training in trainings.items():
        with torch.no_grad():
            apart = (training.outputs(image).float() - wanted).abs().max()
        ratios = [a / b for a, b in zip(training.seconds, first.seconds, strict=True)][_FIRST:]
        rows[name] = {
            "median_s": statistics.median(training.seconds[_FIRST:]),
            "ratio": statistics.median(ratios),
            "first_steps_s": sum(training.seconds[:_FIRST]),
            "losses": max(abs(a - b) / abs(b) for a, b in zip(training.losses, first.losses, strict=True)),
            "logits": float(apart / wanted.std()),
        }
    return rows


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="unet_tiny")
    parser.add_argument("--patch", type=int, nargs="+", default=[40, 56, 40])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=tuple(_DTYPES), default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options)
    for name, row in rows.items():
        print(f"{name:32s} " + "  ".join(f"{key} {value:.3g}" for key, value in row.items()))
    content = {"settings": vars(options), "machine": machine(), "trainings": rows}
    write_json(RESULTS / f"switches_{options.device}.json", content)


if __name__ == "__main__":
    main()
