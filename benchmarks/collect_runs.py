"""Put the runs of a data set side by side in one JSON file: scores, paired differences against the student alone, cost,
time.

    python -m benchmarks.collect_runs 4 --root medkd_data --fold 0 -o benchmarks/results/hippocampus_fold0.json

Reads what training left in the results folder; nothing is computed but the statistics.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import machine
from medkd.core.files import write_json
from medkd.core.paths import Root
from medkd.core.serial import to_data
from medkd.evaluation.report.data import Report, RunEntry
from medkd.evaluation.report.read import read_report

_METRICS = ("Dice", "HD95", "NSD")


def collect(results: Path, fold: str) -> list[dict[str, Any]]:
    """One entry per run that has scores for this fold."""
    report = read_report(results, fold)
    return [_describe(entry, report) for entry in report.scored]


def _describe(entry: RunEntry, report: Report) -> dict[str, Any]:
    seconds = [float(line["seconds"]) for line in entry.log]
    steps = entry.run.budget.iterations_per_epoch * len(seconds)
    return {
        "run": entry.path.name,
        "role": entry.role,
        "budget": to_data(entry.run.budget),
        "precision": entry.run.precision,
        "method_parameters": to_data(entry.run.method_parameters),
        "cases": len(entry.scores.cases),
        "definitions": entry.scores.summary.definitions(),
        "scores": _scores(entry),
        "difference_to_student_alone": _differences(entry, report),
        "gap_closed": report.gap_closed(entry),
        "cost": to_data(entry.cost),
        "training_seconds": round(sum(seconds), 1),
        "seconds_per_step": round(sum(seconds) / max(steps, 1), 4),
        "validation_dice_by_epoch": [line["validation_dice"] for line in entry.log],
        "last_gradient_norms": _last_norms(entry),
    }


def _scores(entry: RunEntry) -> dict[str, Any]:
    """Metric → the mean, and every structure."""
    found: dict[str, Any] = {}
    for metric in _METRICS:
        found[metric] = {}
        for part in ("", *entry.scores.parts):
            found[metric][part or "mean"] = rounded(asdict(entry.scores.value(metric, part)))
    return found


def _differences(entry: RunEntry, report: Report) -> dict[str, Any]:
    """Metric → paired difference to the student alone, where there is one."""
    alone, found = report.alone(entry), {}
    for metric in _METRICS:
        difference = report.difference(entry, alone, metric)
        if difference is not None:
            found[metric] = rounded(asdict(difference))
    return found


def _last_norms(entry: RunEntry) -> dict[str, float]:
    """The gradients' norms that were logged last."""
    for line in reversed(entry.log):
        if line["gradient_norms"]:
            norms: dict[str, float] = line["gradient_norms"]
            return norms
    return {}


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Five digits; undefined numbers become null."""
    return {
        k: round(v, 5) if isinstance(v, float) and v == v else (None if isinstance(v, float) else v)
        for k, v in values.items()
    }


def main() -> None:
    """Collect, print a table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--fold", default="0")
    parser.add_argument(
        "--note", default="", help="what the reader must know, for example what else ran on the machine"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    root = Root.resolve(options.root)
    runs = collect(root.results / root.dataset_name(options.dataset), options.fold)
    for run in runs:
        dice, hd95 = (run["scores"][m]["mean"]["mean"] for m in ("Dice", "HD95"))
        print(
            f"{run['run']:62s} Dice {dice:.4f}  HD95 {hd95:.3f} mm  {run['training_seconds']:7.0f} s  "
            f"{run['seconds_per_step']:.3f} s/step"
        )
    content = {"dataset": root.dataset_name(options.dataset), "fold": options.fold, "note": options.note}
    write_json(options.output, content | {"machine": machine("monai", "dynamic-network-architectures"), "runs": runs})


if __name__ == "__main__":
    main()
