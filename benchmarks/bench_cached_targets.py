"""What a distillation step costs with cached targets, beside a step without a teacher and one with a live teacher.

    python -m benchmarks.bench_cached_targets                                   unet_tiny from res_unet by kd, 40x56x40,
    batch 2, 3 classes python -m benchmarks.bench_cached_targets --patch 96 96 96 --classes 14 --steps 5

A step is everything: reading, augmentation, forward, losses, backward, update, in one process and one thread. ``given``
has the method's
loss, but outputs that cost nothing: what ``cached`` takes beyond it is the reading and moving of targets, and what it
takes beyond ``none`` is the loss itself. The kinds take turns step by step on the same patches, so that other programs
disturb them alike; times are processor seconds. A second loop measures the loader alone, with and without targets. Data
is synthetic, the networks are untrained: both do not change the times. Writes
benchmarks/results/cached_targets_<patch>.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench_training import make_store, network_of
from benchmarks.measure import RESULTS, machine
from medkd.core.features import Progress, Target
from medkd.core.files import write_json
from medkd.core.labels import LabelSpec
from medkd.distillation import Context, Distiller, build_method
from medkd.inference.sliding_window import predict_logits
from medkd.preprocessing.store import CaseStore
from medkd.training.augmentation import Augmentation, read_size
from medkd.training.loader import PatchBatches
from medkd.training.losses import SegmentationLoss
from medkd.training.sampling import PatchSampler
from medkd.training.targets import TargetStore, source_of

KINDS = ("none", "given", "cached", "live")
Step = Callable[[int], None]


def write_targets(
    store: CaseStore,
    cases: list[str],
    target: TargetStore,
    teacher: torch.nn.Module,
    patch: tuple[int, ...],
    classes: int,
) -> dict[str, float]:
    """Predict the cases; returns seconds and bytes."""
    begun, size = time.process_time(), 0
    for case in cases:
        image = torch.from_numpy(np.array(store.open(case).image))
        target.write(case, source_of(store.record(case)), predict_logits(teacher, image, patch, classes), False)
        size += (target.folder / f"{case}.npy").stat().st_size
    return {"processor_seconds": time.process_time() - begun, "mib": size / 2**20, "cases": len(cases)}


def step_of(
    kind: str, batches: PatchBatches, options: argparse.Namespace, teacher: torch.nn.Module, labels: LabelSpec
) -> Step:
    """A whole training step of one kind, with a student of its own."""
    patch = tuple(options.patch)
    student = network_of(options.student, patch, options.classes).train()
    context = Context(
        student_taps=student.taps,
        teacher_taps=teacher.taps,
        num_outputs=options.classes,
        regions=False,
        spacing=(1.0,) * 3,
        patch_size=patch,
    )  # type: ignore[arg-type]
    method = build_method("none" if kind == "none" else options.method, context)
    distiller = Distiller(teacher if kind == "live" else None, method, cached=kind in ("given", "cached"))
    optimizer = torch.optim.SGD(student.parameters(), 1e-3, 0.99, nesterov=True)
    loss = SegmentationLoss(regions=False, batch_dice=False)
    given = [torch.randn(options.batch, options.classes, *patch)] if kind == "given" else []

    def run(index: int) -> None:
        images, raw, *cached = batches[index]
        target, valid = labels.encode(raw)
        with distiller.student_capture(student):
            logits = student(images)
        terms = loss(logits, target, valid)
        terms |= distiller.terms(images, logits, Target(target, valid, Progress(0, 1, index)), *cached, *given)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 12.0)
        optimizer.step()

    return run


def timed(run: Callable[[int], object], index: int) -> float:
    """Processor seconds of one call."""
    begun = time.process_time()
    run(index)
    return time.process_time() - begun


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median seconds of every kind, and the median over steps of the ratio to the first kind's same step."""
    base = next(iter(seconds.values()))
    return {
        name: {
            "median_s": statistics.median(own),
            "ratio": statistics.median(a / b for a, b in zip(own, base, strict=True)),
        }
        for name, own in seconds.items()
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Make data and targets, then time the kinds of steps and the two kinds of loading in turns."""
    patch, labels = tuple(options.patch), LabelSpec.from_names([f"class {i}" for i in range(1, options.classes)])
    store, target = make_store(folder / "store", patch, labels), TargetStore(folder / "targets")
    teacher = network_of(options.teacher, patch, options.classes).eval()
    cases = store.cases()[: options.cases]
    made = write_targets(store, cases, target, teacher, patch, options.classes)
    sampler, augment = PatchSampler(read_size(patch), patch), Augmentation(patch, (0, 1, 2))
    plain, cached = (
        PatchBatches(store.folder, cases, sampler, options.batch, 10_000, 0, augment, targets=folder_of)
        for folder_of in (None, target.folder)
    )
    steps = {kind: step_of(kind, cached if kind == "cached" else plain, options, teacher, labels) for kind in KINDS}
    taken = in_turns(steps, options.steps + 1)
    without_first = {kind: seconds[1:] for kind, seconds in taken.items()}  # which pays for allocations
    loading = in_turns({"without": plain.__getitem__, "with targets": cached.__getitem__}, 4 * options.steps)
    return {"targets": made, "steps": summary(without_first), "loading": summary(loading)}


def in_turns(actions: dict[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds of every action in every round."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for index in range(rounds):
        for name, action in actions.items():
            taken[name].append(timed(action, index))
    return taken


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="unet_tiny")
    parser.add_argument("--teacher", default="res_unet")
    parser.add_argument("--method", default="kd")
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=3, help="output channels")
    parser.add_argument("--cases", type=int, default=8, help="of synthetic data, at most 8")
    parser.add_argument("--steps", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    for part in ("steps", "loading"):
        for name, row in results[part].items():  # type: ignore[attr-defined]
            print(f"{part:8s} {name:12s} {1000 * row['median_s']:9.1f} ms  {row['ratio']:6.3f}")
    name = "x".join(map(str, options.patch))
    write_json(
        RESULTS / f"cached_targets_{name}.json",
        {"settings": vars(options), "machine": machine("batchgeneratorsv2"), **results},
    )


if __name__ == "__main__":
    main()
