"""Does distillation pay? Methods against the student alone, over several seeds, in one JSON file.

    for seed in 0 1; do
      medkd_train_distill 4 MODEL plain_unet none 0 --width-divisor 4 --epochs 120 --iterations-per-epoch 25
      --batch-size 2 \\
        --precision bf16 --seed $seed --tag s$seed
    done
    ... the same for every method; methods that need the teacher's features side by side with
    benchmarks.train_all_methods medkd_score_teacher 4 MODEL 0
    python -m benchmarks.collect_proof 4 --teacher MODEL_RUN --root medkd_data -o
    benchmarks/results/hippocampus_proof.json

Runs of the same student, method, settings, start and number of steps that differ in their seed are one row. Per case
the scores are first averaged over the seeds; the intervals are over the cases, or over patients where they are known,
paired with the student alone. The share
of the gap is (method - alone) / (teacher - alone), in mean foreground Dice. A curve counts as flat when the mean
validation Dice of the last tenth of the epochs is less than 0.005 above that of the tenth before. "Steps to alone" are
those after which the mean validation Dice of five epochs first reaches what the students alone end at, times the
seconds that a step takes, with the time before the first step (start from the teacher) added. Every row is compared
with the student alone at the same number of steps, its Dice also with the student alone at every other number; a method
whose number has no student alone is compared with the one that has the most runs.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from benchmarks.collect_runs import rounded
from benchmarks.measure import machine
from medkd.core.files import read_json, write_json
from medkd.core.paths import Root
from medkd.evaluation.report.data import RunEntry
from medkd.evaluation.report.read import gather
from medkd.evaluation.segmentation.results import Metric, at_best
from medkd.evaluation.statistics import groups_of, mean_interval, paired_difference

METRICS: tuple[Metric, ...] = ("Dice", "HD95", "NSD")
FLAT = 0.005
WINDOW = 5


def scores(entries: Sequence[RunEntry], metric: str) -> np.ndarray:
    """``(cases, structures)``, averaged over the seeds; every run must have scored the same cases."""
    tables = []
    for entry in entries:
        order = np.argsort(entry.scores.cases)
        tables.append(np.asarray(entry.scores.summary.table(metric), dtype=float)[order])
    return np.mean(tables, axis=0)


def by_structure(
    values: np.ndarray, names: Sequence[str], groups: np.ndarray, other: np.ndarray | None = None, best: float = 1.0
) -> dict[str, Any]:
    """Interval of the mean and of every structure over groups of cases; of the paired difference where there is an
    ``other``, of a metric whose best value is ``best``.
    """
    columns: dict[str, Any] = {"mean": slice(None), **{name: i for i, name in enumerate(names)}}
    if other is None:
        return {name: rounded(asdict(mean_interval(values[:, c], groups=groups))) for name, c in columns.items()}
    found = {}
    for name, c in columns.items():
        found[name] = rounded(asdict(paired_difference(values[:, c], other[:, c], groups=groups, at_best=best)))
    return found


def groups(entry: RunEntry) -> np.ndarray:
    """Place of each case's patient, of the cases by name."""
    return groups_of(sorted(entry.scores.cases), entry.scores.patients)


def curve(entry: RunEntry) -> list[float]:
    """Validation Dice by epoch, on the training patches' size."""
    return [float(line["validation_dice"]) for line in entry.log]


def rise(entry: RunEntry) -> float:
    """How far the last tenth of the epochs lies above the tenth before."""
    values = curve(entry)
    tenth = max(len(values) // 10, 1)
    return mean(values[-tenth:]) - mean(values[-2 * tenth : -tenth])


def steps_to(entry: RunEntry, level: float) -> int | None:
    """Steps after which the mean validation Dice of five epochs first reaches a level; None if never."""
    smooth = np.convolve(curve(entry), np.ones(WINDOW) / WINDOW, mode="valid")
    reached = np.flatnonzero(smooth >= level)
    return None if not len(reached) else (int(reached[0]) + WINDOW) * entry.run.budget.iterations_per_epoch


def step_seconds(entry: RunEntry) -> float:
    """Median over the epochs; processor seconds where students were trained side by side."""
    cost = entry.path / f"fold_{entry.folds[0]}" / "step_cost.json"
    if cost.exists():
        found = read_json(cost)
        return float(found["own_seconds"]) + float(found["teacher_seconds"])
    return median(float(line["seconds"]) for line in entry.log) / entry.run.budget.iterations_per_epoch


def row(
    entries: Sequence[RunEntry], alone: Sequence[RunEntry], teacher: RunEntry, start_seconds: float
) -> dict[str, Any]:
    """One method of one student."""
    summary, run = entries[0].scores.summary, entries[0].run
    names = [name for name, _ in summary.structures]
    own = {metric: scores(entries, metric) for metric in METRICS}
    result: dict[str, Any] = {
        "method": run.method,
        "settings": dict(run.method_parameters),
        "init": run.init,
        "targets": run.targets,
        "runs": [e.path.name for e in entries],
        "steps": run.budget.epochs * run.budget.iterations_per_epoch,
        "Dice of each seed": [round(entry.scores.summary.mean_dice, 5) for entry in entries],
        "scores": {metric: by_structure(own[metric], names, groups(entries[0])) for metric in METRICS},
        "rise over the last tenth": [round(rise(entry), 5) for entry in entries],
        "flat": max(map(rise, entries)) < FLAT,
        **speed(entries, alone, start_seconds),
    }
    if {e.path for e in entries} != {e.path for e in alone}:
        result |= differences(own, names, alone, teacher)
    return result


def differences(
    own: Mapping[Metric, np.ndarray], names: Sequence[str], alone: Sequence[RunEntry], teacher: RunEntry
) -> dict[str, Any]:
    """Metric → paired difference to the student alone and to the teacher, and how much of their gap is closed."""
    base = {metric: scores(alone, metric) for metric in METRICS}
    taught = {metric: scores([teacher], metric) for metric in METRICS}
    gap = float(taught["Dice"].mean() - base["Dice"].mean())
    gain = float(own["Dice"].mean() - base["Dice"].mean())
    patients = groups(alone[0])
    return {
        "difference to alone": {m: by_structure(own[m], names, patients, base[m], at_best(m)) for m in METRICS},
        "gap closed": round(gain / gap, 4),
        "difference to teacher": {m: by_structure(own[m], names, patients, taught[m], at_best(m)) for m in METRICS},
    }


def speed(entries: Sequence[RunEntry], alone: Sequence[RunEntry], start_seconds: float) -> dict[str, Any]:
    """Seconds per step, and the steps and seconds until a student is as good as the student alone at its end."""
    level = mean(mean(curve(entry)[-max(len(entry.log) // 10, 1) :]) for entry in alone)
    before = start_seconds if entries[0].run.init != "random" else 0.0
    per_step = mean(step_seconds(entry) for entry in entries)
    reached = [steps_to(entry, level) for entry in entries]
    seconds = [None if steps is None else round(steps * per_step + before, 1) for steps in reached]
    return {"seconds per step": round(per_step, 4), "steps to alone": reached, "seconds to alone": seconds}


def others(
    entries: Sequence[RunEntry], candidates: Sequence[Sequence[RunEntry]], alone: Sequence[RunEntry]
) -> dict[str, Any]:
    """The difference in mean Dice to the students alone that had another number of steps, by that number."""
    mine, found = scores(entries, "Dice"), {}
    for runs in candidates:
        if runs is not alone and runs[0].path != entries[0].path:
            budget = runs[0].run.budget
            found[str(budget.epochs * budget.iterations_per_epoch)] = by_structure(
                mine, [], groups(runs[0]), scores(runs, "Dice")
            )["mean"]
    return found


Key = tuple[str, str, int, str]  # method, start, steps, parameters


def grouped(entries: Sequence[RunEntry], teacher: RunEntry) -> dict[str, dict[Key, list[RunEntry]]]:
    """Student → what was done with it → its scored runs, which differ in their seeds."""
    groups: dict[str, dict[Key, list[RunEntry]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        run = entry.run
        if entry is teacher or entry.scores is None or run.method is None:
            continue
        settings = " ".join(f"{name}={value}" for name, value in sorted(run.method_parameters.items()))
        key = run.method, run.init, run.budget.epochs * run.budget.iterations_per_epoch, settings
        groups[entry.path.name.split("__")[0]][key].append(entry)
    return groups


def students(entries: Sequence[RunEntry], teacher: RunEntry, start_seconds: float) -> dict[str, Any]:
    """Every student with its rows, by falling Dice."""
    found = {}
    for student, methods in grouped(entries, teacher).items():
        candidates = [runs for key, runs in methods.items() if key[:2] == ("none", "random")]
        if not candidates:
            print(f"{student}: left out, since it was never trained alone")
            continue
        rows = []
        for (_, _, steps, _), runs in methods.items():
            alone = methods.get(("none", "random", steps, ""), max(candidates, key=len))
            found_row = row(sorted(runs, key=lambda e: e.run.budget.seed), alone, teacher, start_seconds)
            rows.append(found_row | {"Dice, difference to alone with other steps": others(runs, candidates, alone)})
        rows.sort(key=lambda r: -r["scores"]["Dice"]["mean"]["mean"])
        cost = asdict(next(iter(methods.values()))[0].cost)
        found[student] = {"parameters": cost["parameters"], "macs": cost["macs"], "rows": rows}
    return found


def main() -> None:
    """Collect, print a table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--teacher", required=True, help="name of the teacher's run")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--fold", default="0")
    parser.add_argument("--start-seconds", type=float, default=0.0, help="what the start from the teacher took")
    parser.add_argument("--note", default="")
    parser.add_argument("-o", "--output", type=Path, required=True)
    o = parser.parse_args()
    root = Root.resolve(o.root)
    entries = gather(root.results / root.dataset_name(o.dataset), o.fold)
    teacher = next(e for e in entries if e.path.name == o.teacher and e.scores is not None)
    names = [name for name, _ in teacher.scores.summary.structures]
    content: dict[str, Any] = {
        "dataset": root.dataset_name(o.dataset),
        "fold": o.fold,
        "note": o.note,
        "rules": " ".join((__doc__ or "").split("\n\n")[-1].split()),
        "machine": machine("monai", "dynamic-network-architectures"),
        "definitions": teacher.scores.summary.definitions(),
        "start seconds": o.start_seconds,
        "teacher": {
            "run": teacher.path.name,
            "parameters": teacher.cost.parameters,
            "macs": teacher.cost.macs,
            "scores": {m: by_structure(scores([teacher], m), names, groups(teacher)) for m in METRICS},
        },
        "students": students(entries, teacher, o.start_seconds),
    }
    for student, found in content["students"].items():
        for r in found["rows"]:
            shown = (r["Dice of each seed"], r.get("gap closed"), r["flat"], r["steps to alone"], r["seconds per step"])
            print(f"{student:16s} {r['method']:10s} {r['init']:8s} {r['scores']['Dice']['mean']['mean']:.4f}", *shown)
    write_json(o.output, content)


if __name__ == "__main__":
    main()
