"""What a distillation method costs, and how strongly it pulls: time, memory and gradient norms beside the segmentation
loss's.

    python -m benchmarks.bench_distillation_step                                         all methods, 40x56x40, batch 2,
    3 classes python -m benchmarks.bench_distillation_step --methods kd acf_bckd --patch 96 96 96 --classes 14

Teacher and student are first trained for some steps on synthetic organs, since untrained networks say nothing about the
scale of a term. The gradient norms are those of each weighted term alone, at the same student, with respect to its
logits and to its parameters. Times are processor seconds, which other programs disturb less, and the smallest of
several runs; peak memory is that of the tensors alive at once during the step, beyond those before it. The floor of a
step is the student's own and one forward pass of the teacher. Writes
benchmarks/results/distillation_<patch>[_regions].json, or where ``--output`` says.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import RESULTS, machine
from medkd.core.errors import MedkdError
from medkd.core.features import Progress, Target
from medkd.core.files import write_json
from medkd.core.live_memory import LivePeak
from medkd.core.run import NetworkSpec
from medkd.distillation import METHODS, Context, Distiller, build_method
from medkd.networks import build_network
from medkd.training.losses import SegmentationLoss

HALFWAY = Progress(50, 100)  # so that scheduled terms are all present


def organs(patch: tuple[int, ...], classes: int, batch: int, regions: bool) -> tuple[Tensor, Target]:
    """Noisy images of ellipsoids, one per class, of random place and size; neighbouring classes differ little in
    brightness.
    """
    grid = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in patch), indexing="ij")
    count = classes if regions else classes - 1
    labels = torch.zeros(batch, *patch, dtype=torch.long)
    for n in range(batch):
        for k in range(1, count + 1):
            centre, radius = 1.4 * torch.rand(len(patch)) - 0.7, 0.15 + 0.25 * torch.rand(len(patch))
            labels[n][sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius, strict=True)) < 1] = k
    image = labels.float() / count + 0.25 * torch.randn(batch, *patch)
    hot = torch.stack([labels >= k for k in range(1, count + 1)], 1).float() if regions else labels[:, None]
    return image[:, None], Target(hot, None, HALFWAY)


def train(
    network: nn.Module, batches: Callable[[], tuple[Tensor, Target]], loss: SegmentationLoss, steps: int
) -> float:
    """Train briefly; returns the last loss."""
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
    value = float("nan")
    for _ in range(steps):
        image, target = batches()
        total = torch.stack(list(loss(network(image), target.labels).values())).sum()
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        value = total.item()
    optimizer.zero_grad(set_to_none=True)
    return value


class Bench:
    """One student, one batch, and whatever method is to be measured."""

    def __init__(self, student: nn.Module, loss: SegmentationLoss, image: Tensor, target: Target) -> None:
        self.student, self.loss, self.image, self.target = student, loss, image, target

    def terms(self, distiller: Distiller) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Logits, supervised terms, method's terms."""
        with distiller.student_capture(self.student):
            logits = self.student(self.image)
        return logits, self.loss(logits, self.target.labels), distiller.terms(self.image, logits, self.target)

    def step(self, distiller: Distiller) -> None:
        """Forward and backward, the optimiser left out."""
        self.student.zero_grad(set_to_none=True)
        _, supervised, terms = self.terms(distiller)
        torch.stack([*supervised.values(), *terms.values()]).sum().backward()

    def seconds(self, distiller: Distiller, repeats: int) -> tuple[float, float]:
        """Processor seconds of a step, and of the method's forward pass in it."""
        inside = [0.0]
        before = distiller.method.register_forward_pre_hook(
            lambda *_: inside.__setitem__(0, inside[0] - time.process_time())
        )
        after = distiller.method.register_forward_hook(
            lambda *_: inside.__setitem__(0, inside[0] + time.process_time())
        )
        found = []
        for _ in range(repeats):
            inside[0], start = 0.0, time.process_time()
            self.step(distiller)
            found.append((time.process_time() - start, inside[0]))
        before.remove()
        after.remove()
        return min(f[0] for f in found), min(f[1] for f in found)

    def teacher_seconds(self, teacher: nn.Module, repeats: int) -> float:
        """Processor seconds of one forward pass of a teacher."""
        found = []
        for _ in range(repeats + 1):  # the first one pays for allocations
            start = time.process_time()
            with torch.no_grad():
                teacher(self.image)
            found.append(time.process_time() - start)
        return min(found)

    def peak_mib(self, distiller: Distiller) -> float:
        """Peak of live tensors in a step."""
        self.student.zero_grad(set_to_none=True)
        gc.collect()
        with LivePeak() as live:
            self.step(distiller)
        return live.highest / 2**20

    def norms(self, distiller: Distiller) -> dict[str, dict[str, float]]:
        """Value and gradient norms of every term, the supervised loss first."""
        logits, supervised, terms = self.terms(distiller)
        every = {"segmentation": torch.stack(list(supervised.values())).sum(), **terms}
        return {name: self._norms(term, logits) for name, term in every.items()}

    def _norms(self, term: Tensor, logits: Tensor) -> dict[str, float]:
        parameters = list(self.student.parameters())
        found = torch.autograd.grad(term, [logits, *parameters], retain_graph=True, allow_unused=True)
        squares = [0.0 if g is None else float(g.square().sum()) for g in found]
        return {"value": term.item(), "logits": squares[0] ** 0.5, "parameters": sum(squares[1:]) ** 0.5}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train both networks, then measure method after method; prints as it goes."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    patch = tuple(options.patch)
    specs = [
        NetworkSpec(name=name, in_channels=1, num_outputs=options.classes, patch_size=patch)
        for name in (options.student, options.teacher)
    ]
    student, teacher = (build_network(spec) for spec in specs)
    loss = SegmentationLoss(regions=options.regions, batch_dice=False)
    trained = {}
    for name, network, steps in (("student", student, options.steps), ("teacher", teacher, 2 * options.steps)):
        trained[name] = train(
            network, lambda: organs(patch, options.classes, options.batch, options.regions), loss, steps
        )
    print("trained:", {name: round(value, 3) for name, value in trained.items()}, flush=True)
    bench = Bench(student, loss, *organs(patch, options.classes, options.batch, options.regions))
    context = Context(
        student_taps=student.taps,
        teacher_taps=teacher.taps,
        num_outputs=options.classes,
        regions=options.regions,
        spacing=(2.0, *(1.5,) * (len(patch) - 1)),
        patch_size=patch,
    )
    results: dict[str, Any] = {}
    teacher_s = bench.teacher_seconds(teacher.eval(), options.repeats)
    for name in options.methods:
        try:
            distiller = Distiller(teacher, build_method(name, context, dict(s.split("=", 1) for s in options.set)))
        except MedkdError as error:
            print(f"{name}: {error}")
            continue
        distiller.prepare(
            [(bench.image, bench.target)] * 2
        )  # the first stage of the methods that have one; not measured
        bench.step(distiller)  # the first pass pays for allocations
        step, inside = bench.seconds(distiller, options.repeats)
        results[name] = {
            "step_s": step,
            "loss_forward_s": inside,
            "peak_mib": bench.peak_mib(distiller),
            "terms": bench.norms(distiller),
        }
        if name != "none" and "none" in results:
            results[name]["of_the_floor"] = step / (results["none"]["step_s"] + teacher_s)
        show(name, results)
    return {"trained_loss": trained, "teacher_forward_s": teacher_s, "methods": results}


def show(name: str, results: dict[str, Any]) -> None:
    """Print one method's lines."""
    row = results[name]
    relative = {base: row["step_s"] / results[base]["step_s"] for base in ("none", "kd") if base in results}
    if "of_the_floor" in row:
        relative["the floor"] = row["of_the_floor"]
    ratios = "  ".join(f"{ratio:5.2f} x {base}" for base, ratio in relative.items())
    print(
        f"{name:12s} step {row['step_s']:7.3f} s  loss {row['loss_forward_s']:7.3f} s  {row['peak_mib']:7.0f} MiB  "
        f"{ratios}"
    )
    for term, norms in row["terms"].items():
        if name == "none" or term != "segmentation":
            pull = f"|d logits| {norms['logits']:10.6f}   |d parameters| {norms['parameters']:10.5f}"
            print(f"    {term:24s} value {norms['value']:10.5f}   {pull}")


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), help="none first gives the other rows their ratio"
    )
    parser.add_argument("--patch", nargs="+", type=int, default=[40, 56, 40])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=3, help="output channels")
    parser.add_argument("--regions", action="store_true")
    parser.add_argument("--student", default="unet_tiny")
    parser.add_argument("--teacher", default="res_unet")
    parser.add_argument(
        "--steps", type=int, default=40, help="training steps of the student; the teacher has twice as many"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="METHOD.PARAMETER=VALUE")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    order = [m for m in ("none", "kd") if m in options.methods]
    options.methods = order + [m for m in options.methods if m not in order]
    results = measure(options)
    suffix = "x".join(map(str, options.patch)) + ("_regions" if options.regions else "")
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    write_json(
        options.output or RESULTS / f"distillation_{suffix}.json",
        {"settings": settings, "machine": machine("monai", "scipy"), **results},
    )


if __name__ == "__main__":
    main()
