"""The divergence of ``kd`` and its kin, forward and backward: block by block, beside the formula written out.

    python -m benchmarks.bench_divergence

Logits are random, batch 2; both ways take turns, times are processor seconds of one thread and the median of the
rounds. ``value`` and ``gradient`` are the largest relative differences. Writes benchmarks/results/divergence.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import RESULTS, machine
from medkd.core.files import write_json
from medkd.distillation.outputs.divergence import softmax_kl

CASES = (((40, 56, 40), 3), ((96, 96, 96), 14))
Divergence = Callable[[Tensor, Tensor], Tensor]


def written_out(student: Tensor, teacher: Tensor) -> Tensor:
    """The formula, operation by operation."""
    log_s, log_t = F.log_softmax(student / 1.0, 1), F.log_softmax(teacher / 1.0, 1)
    return (log_t.exp() * (log_t - log_s)).sum(1, keepdim=True)


def once(way: Divergence, student: Tensor, teacher: Tensor) -> tuple[float, Tensor, Tensor]:
    """Seconds, value and gradient."""
    own = student.clone().requires_grad_()
    begun = time.process_time()
    value = way(own, teacher).mean()
    value.backward()
    seconds = time.process_time() - begun
    assert own.grad is not None
    return seconds, value.detach(), own.grad


def measure(patch: tuple[int, ...], classes: int, rounds: int) -> dict[str, Any]:
    """Both ways in turns."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, classes, *patch), 3 * torch.randn(2, classes, *patch)
    ways: dict[str, Divergence] = {"written out": written_out, "by blocks": softmax_kl}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        results = {name: once(way, student, teacher) for name, way in ways.items()}
        for name, (seconds, _, _) in results.items():
            taken[name].append(seconds)
    (_, value, gradient), (_, found, own) = results["written out"], results["by blocks"]
    medians = {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}
    return {
        "seconds": medians,
        "ratio": medians["written out"] / medians["by blocks"],
        "value": float((found - value).abs() / value.abs()),
        "gradient": float((own - gradient).abs().max() / gradient.abs().max()),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for patch, classes in CASES:
        name = f"{'x'.join(map(str, patch))}, {classes} classes"
        rows[name] = measure(patch, classes, options.rounds)
        print(name, rows[name], flush=True)
    write_json(RESULTS / "divergence.json", {"settings": vars(options), "machine": machine(), "cases": rows})


if __name__ == "__main__":
    main()
