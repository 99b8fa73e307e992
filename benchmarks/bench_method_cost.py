"""What the loss of each method costs by itself: forward and backward, given the features, at 96³, batch 2, 14 classes.

    python -m benchmarks.bench_method_cost
    python -m benchmarks.bench_method_cost --methods kd bckd --device cuda --output
    benchmarks/results/method_cost_96_cuda.json
    python -m benchmarks.bench_method_cost --patch 128 128 128 --device meta --output
    benchmarks/results/method_memory_128.json

On ``meta`` nothing is computed: tensors have shapes and no values, the ways taken are those of a GPU, memory is counted
all the same, and the seconds say nothing.

Logits and features have the shapes that the student's and the teacher's taps have at this patch and are drawn at
random, so that neither network runs; only a method that continues the teacher gets one whole pass of it first, outside
of the clock. Times are the smallest of several runs (processor seconds on the CPU, which other programs disturb less),
memory is that of the tensors alive at once, gradients included, beyond logits, features and labels. It is held against
what the method announces, and a method that takes more ends the benchmark with status 1. Writes
benchmarks/results/method_cost_<patch>.json.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench_distillation_step import organs
from benchmarks.measure import RESULTS, machine
from medkd.core.errors import MedkdError
from medkd.core.features import Outputs, Tap, Target
from medkd.core.files import write_json
from medkd.core.live_memory import LivePeak
from medkd.distillation import METHODS, Context, Method, build_method
from medkd.distillation.boundaries import distance
from medkd.distillation.prompts.first_stage import PromptMethod
from medkd.networks import SegmentationNetwork, build_network
from medkd.networks.reference import build_weightless, reference_spec
from medkd.training.losses import SegmentationLoss


class Bench:
    """One batch at given shapes, and whatever loss is to be measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.repeats: int = options.repeats
        patch = tuple(options.patch)
        specs = [
            replace(reference_spec(name, len(patch)), patch_size=patch, num_outputs=options.classes)
            for name in (options.student, options.teacher)
        ]
        self.spec = specs[1]
        student, teacher = (build_weightless(spec) for spec in specs)
        self.context = Context(
            student_taps=student.taps,
            teacher_taps=teacher.taps,
            num_outputs=options.classes,
            regions=False,
            spacing=(2.0, 1.5, 1.5)[: len(patch)],
            patch_size=patch,
        )
        image, target = organs(patch, options.classes, options.batch, False)
        self.image, labels = image.to(self.device), target.labels.to(self.device)
        self.target = Target(labels, None, target.progress)
        self.student = (self._logits(1.0), {tap.name: self._feature(tap) for tap in student.taps})
        self.teacher = (self._logits(3.0), {tap.name: self._feature(tap) for tap in teacher.taps})
        self._continued: SegmentationNetwork | None = None

    def supervised(self) -> dict[str, float]:
        """The supervised loss, which every training step pays."""
        loss = SegmentationLoss(regions=False, batch_dice=False)
        return self._measure(lambda logits, _: loss(logits, self.target.labels), (), [])

    def method(self, name: str) -> dict[str, Any]:
        """Time, memory and what was announced.

        Raises:
            MethodError: the method is not defined for this pair of networks.
        """
        torch.manual_seed(1)
        method = build_method(name, self.context)
        if isinstance(
            method, PromptMethod
        ):  # its first stage is no part of a step; masks of untrained prompts cost the same
            method.prepared.fill_(True)
            method.load_state_dict(method.state_dict())
        method = method.to(self.device)
        needs = method.needs()
        corrections = {n: self.teacher[1][n].roll(1, 0) for n in needs.teacher_corrections}
        features = {n: self.teacher[1][n] for n in needs.teacher}
        rest = self._rest() if method.continues_teacher and not isinstance(method, PromptMethod) else None
        teacher = Outputs(
            logits=self.teacher[0], features=features, corrections=corrections, auxiliary=(), forward_from=rest
        )
        found: dict[str, Any] = self._measure(
            lambda logits, own: method(Outputs(logits=logits, features=own), teacher, self.target),
            needs.student,
            list(method.parameters()),
        )
        sizes = [
            _bytes(self.teacher[0]),
            sum(_bytes(x) for x in (*self._own(needs.student).values(), *features.values())),
        ]
        found["announced_mib"] = self._announced(method, teacher, *sizes) / 2**20
        found["bound"] = method.bound
        found["features_mib"] = sizes[1] / 2**20
        return found

    def _announced(self, method: Method, teacher: Outputs, logits: int, features: int) -> int:
        total = method.announced(logits, features, len(self.image))
        return total + (0 if teacher.forward_from is None else self._continuation(method.needs().teacher))

    def _continuation(self, taps: tuple[str, ...]) -> int:
        """What the teacher's layers after these taps take for a feature and its gradient, from the shapes alone."""
        teacher = build_weightless(self.spec).eval().requires_grad_(False)
        teacher.remember = True
        with torch.no_grad():
            teacher(torch.empty_like(self.image, device="meta"))
        with LivePeak() as live:
            features = [torch.empty_like(self.teacher[1][name], device="meta").requires_grad_() for name in taps]
            torch.stack(
                [teacher.forward_from(n, f).sum() for n, f in zip(taps, features, strict=True)]
            ).sum().backward()
        return live.highest

    def _own(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        return {name: self.student[1][name] for name in names}

    def _rest(self) -> Callable[[str, Tensor], Tensor]:
        if self._continued is None:
            self._continued = build_network(self.spec).to(self.device).eval().requires_grad_(False)
            self._continued.remember = True
            with torch.no_grad():
                self._continued(self.image)
        return self._continued.forward_from

    def _measure(
        self,
        loss: Callable[[Tensor, Mapping[str, Tensor]], dict[str, Tensor]],
        taps: tuple[str, ...],
        helpers: list[torch.nn.Parameter],
    ) -> dict[str, float]:
        leaves = [self.student[0], *self._own(taps).values(), *helpers]

        def step() -> None:
            for leaf in leaves:
                leaf.grad = None
            for leaf in leaves:
                leaf.requires_grad_()
            terms = loss(self.student[0], self._own(taps))
            if terms:
                torch.stack(list(terms.values())).sum().backward()

        seconds = [self._seconds(step) for _ in range(self.repeats)]
        gc.collect()
        for leaf in leaves:
            leaf.grad = None
        with LivePeak() as live:
            step()
        for leaf in leaves:
            leaf.grad = None
        return {"seconds": min(seconds), "extra_mib": live.highest / 2**20}

    def _seconds(self, step: Callable[[], None]) -> float:
        cuda = self.device.type == "cuda"
        clock = time.perf_counter if cuda else time.process_time
        if cuda:
            torch.cuda.synchronize(self.device)
        start = clock()
        step()
        if cuda:
            torch.cuda.synchronize(self.device)
        return clock() - start

    def _logits(self, sharpness: float) -> Tensor:
        """Smooth maps that prefer the true class, more so the sharper they are."""
        hot = F.one_hot(self.target.labels[:, 0], self.context.num_outputs).movedim(-1, 1).float()
        size = self.target.labels.shape[2:]
        mode = "trilinear" if len(size) == 3 else "bilinear"
        noise = F.interpolate(torch.randn(*hot.shape[:2], *(max(n // 8, 2) for n in size)), size=size, mode=mode)
        return sharpness * hot + noise.to(self.device)

    def _feature(self, tap: Tap) -> Tensor:
        size = (n // s for n, s in zip(self.context.patch_size, tap.stride, strict=True))
        return torch.randn(len(self.image), tap.channels, *size).to(self.device)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@contextmanager
def _without_values(device: str) -> Iterator[None]:
    """On ``meta`` nothing is drawn, and the one question that a step may ask the device is answered by "all of them",
    the most that it can be.
    """
    if device != "meta":
        yield
        return
    with (
        mock.patch.object(distance, "mixed_masks", lambda masks: torch.arange(len(masks), device=masks.device)),
        mock.patch.object(torch, "Generator", _NoGenerator),
    ):
        yield


class _NoGenerator:
    """Stands for a generator of random numbers where none are drawn."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def manual_seed(self, seed: int) -> None:
        """The default generator is taken, which ``meta`` does not ask."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All methods; prints as it goes."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    bench.supervised()  # the first pass pays for allocations
    supervised = bench.supervised()
    print(f"{'supervised':12s} {supervised['seconds']:8.3f} s {supervised['extra_mib']:7.0f} MiB", flush=True)
    rows: dict[str, Any] = {}
    for name in options.methods:
        try:
            row = bench.method(name)
        except MedkdError as error:
            print(f"{name:12s} {error}", flush=True)
            continue
        kd = rows["kd"]["seconds"] if "kd" in rows else row["seconds"] if name == "kd" else None
        rows[name] = row | {
            "times_supervised": row["seconds"] / supervised["seconds"],
            "times_kd": kd and row["seconds"] / kd,
        }
        within = "" if row["extra_mib"] <= row["announced_mib"] else "   MORE THAN ANNOUNCED"
        print(
            f"{name:12s} {row['seconds']:8.3f} s {rows[name]['times_supervised']:6.2f} x supervised "
            f"{row['extra_mib']:7.0f} MiB"
            f" of {row['announced_mib']:7.0f} announced{within}",
            flush=True,
        )
    return {"supervised": supervised, "methods": rows}


def _memory_alone(results: dict[str, Any]) -> dict[str, Any]:
    """What was measured where nothing was computed."""
    clocks = ("seconds", "times_supervised", "times_kd")
    for row in (results["supervised"], *results["methods"].values()):
        for name in clocks:
            row.pop(name, None)
    return results


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--patch", nargs="+", type=int, default=[96, 96, 96])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=14, help="output channels")
    parser.add_argument("--student", default="unet_tiny")
    parser.add_argument("--teacher", default="res_unet")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    first = [m for m in ("none", "kd") if m in options.methods]
    options.methods = first + [m for m in options.methods if m not in first]
    return options


def main() -> int:
    """Measure, write; 1 where a method takes more than it announces."""
    options = _arguments()
    with _without_values(options.device):
        results = measure(options)
    if options.device == "meta":
        results = _memory_alone(results)
    edges = options.patch[:1] if len(set(options.patch)) == 1 else options.patch
    path = options.output or RESULTS / f"method_cost_{'x'.join(map(str, edges))}.json"
    settings = {k: v for k, v in vars(options).items() if k != "output"}
    write_json(path, {"schema": 1, "settings": settings, "machine": machine("monai"), **results})
    return int(any(row["extra_mib"] > row["announced_mib"] for row in results["methods"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
