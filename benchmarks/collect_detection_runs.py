"""Put the runs of a detection data set side by side in one JSON file: scores, paired differences against the student
alone, cost, time.

    python -m benchmarks.collect_detection_runs 502 --root medkd_data --fold 0 -o
    benchmarks/results/fracatlas_fold0.json

Reads what training left in the results folder; nothing is computed but the statistics.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.collect_runs import rounded
from benchmarks.measure import machine
from medkd.core.files import read_json, write_json
from medkd.core.paths import Root
from medkd.core.run import PLANS_FILE
from medkd.core.serial import to_data
from medkd.evaluation.report.data import Report, RunEntry
from medkd.evaluation.report.read import read_report
from medkd.evaluation.statistics import interval_json

_COMPARED = ("AP", "AP50", "S@1")


def collect(results: Path, fold: str) -> list[dict[str, Any]]:
    """One entry per run that has scores for this fold, the best first."""
    report = read_report(results, fold)
    return [_describe(entry, report) for entry in sorted(report.scored, key=lambda entry: -entry.merit)]


def _describe(entry: RunEntry, report: Report) -> dict[str, Any]:
    summary = entry.scores.summary
    alone = report.alone(entry)
    differences = {metric: report.difference(entry, alone, metric) for metric in _COMPARED}
    seconds = [float(line["seconds"]) for line in entry.log]
    steps = entry.run.budget.iterations_per_epoch * len(seconds)
    return {
        "run": entry.path.name,
        "role": entry.role,
        "budget": to_data(entry.run.budget),
        "image_size": entry.run.network.patch_size[0],
        "method_parameters": to_data(entry.run.method_parameters),
        "images": len(summary.truths),
        "boxes": summary.boxes(),
        "scores": {m: rounded(interval_json(summary.value(m))) for m in summary.metrics()},
        "difference_to_student_alone": {
            metric: rounded(asdict(found)) for metric, found in differences.items() if found is not None
        },
        "cost": to_data(entry.cost),
        "training_seconds": round(sum(seconds), 1),
        "seconds_per_step": round(sum(seconds) / max(steps, 1), 4),
        "fastest_epoch_seconds_per_step": round(
            min(seconds, default=0.0) / max(entry.run.budget.iterations_per_epoch, 1), 4
        ),
        "validation_ap_by_epoch": [line.get("validation_score") for line in entry.log],
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
    name = root.dataset_name(options.dataset)
    runs = collect(root.results / name, options.fold)
    for run in runs:
        ap, ap50, found = (run["scores"][m]["mean"] for m in _COMPARED)
        print(f"{run['run']:62s} AP {ap:.4f}  AP50 {ap50:.4f}  S@1 {found:.3f}  {run['seconds_per_step']:.3f} s/step")
    content = {
        "dataset": name,
        "fold": options.fold,
        "note": options.note,
        "plan": read_json(root.preprocessed / name / PLANS_FILE),
    }
    write_json(
        options.output, content | {"machine": machine("ultralytics", "torchvision", "pycocotools"), "runs": runs}
    )


if __name__ == "__main__":
    main()
