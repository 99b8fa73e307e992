"""Train one student per distillation method on real data under an equal budget, and put all of them in one table.

    python -m benchmarks.train_all_methods 4 res_unet unet_tiny 0 --epochs 24 --patch-size 32 40 32 --root medkd_data
    python -m benchmarks.train_all_methods 4 MODEL plain_unet:4 unet_tiny 0 --methods cwd acf_bckd --seeds 0 1 --tag
    python -m benchmarks.train_all_methods ... --collect benchmarks/results/hippocampus_all_methods.json      only write
    the table

A student is a network, and after a colon its width divisor. All students see the same batches, those of the first seed:
they are trained side by side, one step each, and the teacher, which is most of a step's cost, looks at a batch once for
all of them; further seeds change the initial weights only. (Of one student ``medkd_train_distill`` does so with
METHOD1,METHOD2; here are several, and the cost of a step is measured.) Everything else is what ``medkd_train_distill``
does, and the run folders are the same. The time of a step is measured per student in processor seconds; the teacher's
is added where the method needs one. Memory is that of the tensors alive at once during a step, beyond those before it.
A killed run continues from the last finished epoch.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.collect_runs import collect
from benchmarks.measure import machine
from medkd.core.errors import MethodError
from medkd.core.features import Progress
from medkd.core.files import read_json, write_json
from medkd.core.live_memory import LivePeak
from medkd.core.paths import Root
from medkd.core.run import LATEST
from medkd.distillation import METHODS
from medkd.distillation.shared import SharedDistiller, SharedTeacher
from medkd.models.guard import choose_teacher
from medkd.networks import build_network
from medkd.training.distillation import DistillationTrainer
from medkd.training.hooks import ProgressBar
from medkd.training.options import TrainOptions
from medkd.training.run import begin, find_teacher, finish, make_job, read_fold
from medkd.training.segmentation_lesson import fold_data, loop_settings, method_for
from medkd.training.segmentation_task import SegmentationFold, SegmentationJob, SegmentationTask

COST = "step_cost.json"
TASK = SegmentationTask()


@dataclass
class Entrant:
    """One student on its way."""

    job: SegmentationJob
    trainer: DistillationTrainer
    seconds: float = 0.0
    steps: int = 0
    peak: float = 0.0


def enter(data: SegmentationFold, student: str, method: str, source: Any, shared: SharedTeacher) -> Entrant:
    """Build a student, its method and its run folder, as medkd_train_distill does."""
    job = make_job(TASK, data, student, source, method)
    torch.manual_seed(job.options.seed)
    network = build_network(job.run.network)
    teacher: Any = shared.network
    distiller = SharedDistiller(shared, method_for(job, network, teacher))
    trainer = DistillationTrainer(network, distiller, fold_data(job), loop_settings(job), job.folder)
    trainer.hooks = [hook for hook in trainer.hooks if not isinstance(hook, ProgressBar)]
    if not (job.folder / LATEST).exists():
        begin(job, job.seen)
    return Entrant(job, trainer)


def step(entrant: Entrant, batch: Any) -> None:
    """One optimiser step of one student."""
    begun = time.process_time()
    entrant.trainer.step(batch)
    entrant.seconds += time.process_time() - begun
    entrant.steps += 1


def train(entrants: list[Entrant], shared: SharedTeacher) -> float:
    """Train all students epoch by epoch, step by step; returns the processor seconds of the teacher's passes."""
    seconds = 0.0
    first = entrants[0].trainer
    budget = first.settings.budget
    for entrant in entrants:
        entrant.trainer.start(resume=True)
    batches = first.batches(first.first_step)
    total = budget.epochs * budget.iterations_per_epoch
    with tqdm(total=total, initial=first.first_step, unit="step", disable=None) as bar:
        for _ in range(first.epoch, budget.epochs):
            for entrant in entrants:
                entrant.trainer.begin_epoch()
            for _ in range(budget.iterations_per_epoch):
                batch = next(batches)
                begun = time.process_time()
                shared.forget()
                with first.autocast():
                    shared.look(batch[0].to(first.settings.device))
                seconds += time.process_time() - begun
                for entrant in entrants:
                    step(entrant, batch)
                bar.update()
            for entrant in entrants:
                # the seconds of a shared epoch say nothing of one student, so they are left at zero; see the costs
                entrant.trainer.end_epoch(seconds=0.0)
    return seconds


def peak_memory(entrant: Entrant, shared: SharedTeacher, batch: Any) -> float:
    """MiB of tensors alive at once during a step with the teacher's forward pass in it, beyond those before it."""
    shared.forget()
    trainer = entrant.trainer
    trainer.network.train()
    with LivePeak() as live:
        terms = trainer.training_terms(batch, Progress(trainer.epoch, trainer.settings.budget.epochs, 0))
        torch.stack(list(terms.values())).sum().backward()
    trainer.network.zero_grad(set_to_none=True)
    trainer.helpers().zero_grad(set_to_none=True)
    return live.highest / 2**20


def finish_all(entrants: list[Entrant], shared: SharedTeacher, seconds: float) -> None:
    """Save the weights, note the cost of a step (the teacher's passes took ``seconds``), predict and score."""
    batch = next(entrants[0].trainer.batches(0))
    looks = max(entrants[0].steps, 1)
    for entrant in entrants:
        trainer = entrant.trainer
        if entrant.steps:
            teacher = seconds / looks if trainer.distiller.needs_teacher else 0.0
            helpers = sum(p.numel() for p in trainer.helpers().parameters() if p.requires_grad)
            content = {
                "own_seconds": entrant.seconds / entrant.steps,
                "teacher_seconds": teacher,
                "steps": entrant.steps,
                "peak_mib": peak_memory(entrant, shared, batch),
                "helper_parameters": helpers,
            }
            write_json(trainer.folder / COST, content)
        trainer.finish()
        for hook in trainer.hooks:
            hook.close()
        finish(TASK, entrant.job)


def table(results: Path, fold: str) -> list[dict[str, Any]]:
    """The runs' scores with the cost of a step relative to the student alone."""
    runs = collect(results, fold)
    for run in runs:
        path = results / run["run"] / f"fold_{fold}" / COST
        run["step"] = read_json(path) if path.exists() else None
        for key in ("training_seconds", "seconds_per_step"):
            run.pop(key)
    measured = [run for run in runs if run["step"]]
    alone = [run["step"]["own_seconds"] for run in measured if "__none__" in run["run"]]
    if alone:
        for run in measured:
            _relate(run["step"], alone[0])
    return runs


def _relate(step: dict[str, float], alone: float) -> None:
    """Add how much longer a step takes than that of the student alone."""
    own = step["own_seconds"]
    step["relative_to_none"] = (own + step["teacher_seconds"]) / alone
    step["relative_without_teacher"] = own / alone


def folds(o: argparse.Namespace, patch: tuple[int, ...] | None) -> list[tuple[SegmentationFold, str]]:
    """One job per student and seed, with the student's name."""
    common = {name: getattr(o, name) for name in ("root", "epochs", "iterations_per_epoch", "batch_size", "precision")}
    found = []
    for text in o.student:
        student, _, divisor = text.partition(":")
        for seed in o.seeds:
            own = {"seed": seed, "width_divisor": int(divisor or 1), "tag": f"{o.tag}{seed}" if o.tag else None}
            options = TrainOptions(**common, **own, patch_size=patch, resume=True, workers=0)
            found.append((read_fold(TASK, o.dataset, o.fold, options), student))
    return found


def possible(data: SegmentationFold, student: str, names: list[str], source: Any, network: Any) -> list[str]:
    """The methods that exist for this pair of networks."""
    job = make_job(TASK, data, student, source, "none")
    own = build_network(job.run.network)
    methods = []
    for name in names:
        try:
            method_for(replace(job, run=replace(job.run, method=name)), own, network)
        except MethodError as error:
            print(f"{name}: left out. {error}")
            continue
        methods.append(name)
    return methods


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("teacher")
    parser.add_argument("student", nargs="+")
    parser.add_argument("fold")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--iterations-per-epoch", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--patch-size", type=int, nargs="+")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--tag", nargs="?", const="s", help="add this text (default: s) and the seed to the runs' names"
    )
    parser.add_argument("--root", type=Path)
    parser.add_argument("--note", default="")
    parser.add_argument("--collect", type=Path, help="write the table of what is trained, train nothing")
    return parser.parse_args()


def main() -> None:
    """Train what is not yet trained, then write the table."""
    o = arguments()
    root = Root.resolve(o.root)
    if o.collect:
        name = root.dataset_name(o.dataset)
        content = {
            "dataset": name,
            "fold": o.fold,
            "note": o.note,
            "machine": machine("monai", "dynamic-network-architectures"),
        }
        write_json(o.collect, content | {"runs": table(root.results / name, o.fold)})
        return
    first = folds(o, None)[0][0]
    source = find_teacher(TASK, o.dataset, o.teacher, first.options)
    source.check_fits(first.plan, first.configuration, first.description)
    chosen = choose_teacher(source, o.fold, first.split, first.store.cases(), first.raw)
    network = chosen.network().to(first.device)
    shared, entrants = SharedTeacher(network), []
    for data, student in folds(o, tuple(o.patch_size) if o.patch_size else None):
        for method in possible(data, student, o.methods, source, network):
            entrants.append(enter(data, student, method, source, shared))
    finish_all(entrants, shared, train(entrants, shared))


if __name__ == "__main__":
    main()
