"""Intervals of what :mod:`benchmarks.prove_training` found, as JSON and as tables.

    python -m benchmarks.compare_arms RESULT.json -o benchmarks/results/NAME.json

Per case the scores are first averaged over the seeds; intervals are 95 % bootstrap intervals over patients, each with
all of its cases, where names say the patient (``patient003_frame01``), else over cases. Every arm is compared with the
student alone on few labels and on all labels, and with the teacher, on the same cases. A curve counts as flat where the
mean validation Dice of its last tenth lies less than 0.005 above that of the tenth before.
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
from benchmarks.proof_arms import ARMS, Arm
from medkd.core.files import read_json, write_json
from medkd.evaluation.segmentation.results import Metric, at_best
from medkd.evaluation.statistics import groups_of, mean_interval, paired_difference

METRICS: tuple[Metric, ...] = ("Dice", "HD95", "NSD")
FLAT = 0.005
_OTHERS = {"few": "alone20", "all": "alone"}
_TEACHERS = {
    "hippocampus": "hippocampus.teacher",
    "hippocampus_tiny": "hippocampus.teacher",
    "acdc": "acdc.teacher",
    "acdc_eighth": "acdc.teacher",
    "parts": "parts.both",
}

Runs = Sequence[Mapping[str, Any]]


def groups(run: Mapping[str, Any]) -> np.ndarray:
    """Place of the patient of each case, by name ``(cases,)``."""
    names = sorted(run["cases"])
    return groups_of(names, {name: name.rpartition("_frame")[0] for name in names if "_frame" in name})


def table(runs: Runs, metric: str) -> np.ndarray:
    """Scores ``(cases, structures)`` of the cases by name, means over seeds."""
    names = sorted(runs[0]["cases"])
    if any(sorted(run["cases"]) != names for run in runs):
        raise ValueError("the runs of an arm were judged on different cases")
    every = np.array([[run["cases"][name][metric] for name in names] for run in runs], dtype=float)
    means: np.ndarray = np.nanmean(every, axis=0)
    return means


def rise(run: Mapping[str, Any]) -> float:
    """How far the last tenth of the curve lies above the tenth before."""
    curve = run["validation_curve"]
    tenth = max(len(curve) // 10, 1)
    if len(curve) < 2 * tenth:
        return 0.0
    return mean(curve[-tenth:]) - mean(curve[-2 * tenth : -tenth])


def row(arm: Arm, runs: Runs, found: Mapping[str, Runs]) -> dict[str, Any]:
    """One arm."""
    result: dict[str, Any] = {
        "says": arm.says,
        "network": runs[0]["run"]["network"]["name"],
        "seeds": [run["seed"] for run in runs],
        "Dice of each seed": [round(float(table([run], "Dice").mean()), 5) for run in runs],
        "flat": max(map(rise, runs)) < FLAT,
        "seconds per step": _step_seconds(runs),
    }
    patients = groups(runs[0])
    for metric in METRICS:
        scores = table(runs, metric)
        result[metric] = rounded(asdict(mean_interval(scores, groups=patients)))
        result[f"{metric} by structure"] = [
            rounded(asdict(mean_interval(scores[:, column], groups=patients))) for column in range(scores.shape[1])
        ]
        for title, other in _others(arm).items():
            if found.get(other) and other != arm.name:
                against = table(found[other], metric)
                if against.shape == scores.shape:
                    difference = paired_difference(scores, against, groups=patients, at_best=at_best(metric))
                    result[f"{metric} - {title}"] = rounded(asdict(difference))
    return result


def _step_seconds(runs: Runs) -> float:
    steps = runs[0]["run"]["budget"]["iterations_per_epoch"]
    seconds = [second for run in runs for second in run["epoch_seconds"]]
    return round(median(seconds) / steps, 4) if seconds else 0.0


def _others(arm: Arm) -> dict[str, str]:
    """What an arm is compared with: title → name."""
    family = arm.name.partition(".")[0]
    if family == "parts":
        return {"student of one": "parts.student_of_one", "teacher": "parts.both"}
    others = {title: f"{family}.{key}" for title, key in _OTHERS.items()}
    return {**others, "teacher": _TEACHERS[family]} if family in _TEACHERS else others


def compare(content: Mapping[str, Any]) -> dict[str, Any]:
    """All arms that have a run."""
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for run in content["runs"].values():
        found[run["arm"]].append(run)
    rows = {}
    for arm in ARMS:
        if arm.name in found:
            rows[arm.name] = row(arm, sorted(found[arm.name], key=lambda run: run["seed"]), found)
    return rows


def lines(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same as a table in Markdown."""
    made = [
        "| arm | Dice, per seed | − 20 labels | − all labels | − teacher | HD95 mm | NSD | flat |",
        "|" + "---|" * 8,
    ]
    for name, entry in rows.items():
        seeds = ", ".join(f"{value:.4f}" for value in entry["Dice of each seed"])
        against = [_signed(entry.get(f"Dice - {title}")) for title in ("few", "all", "teacher")]
        cells = [f"`{name}` {entry['says']}", seeds, *against, f"{entry['HD95']['mean']:.2f}"]
        cells += [f"{entry['NSD']['mean']:.3f}", "yes" if entry["flat"] else "no"]
        made.append("| " + " | ".join(cells) + " |")
    return made


def _signed(difference: Mapping[str, float] | None) -> str:
    if difference is None or difference["low"] is None:
        return ""
    signed = [f"{difference[key]:+.4f}".replace("-", "−") for key in ("mean", "low", "high")]
    return f"{signed[0]} ({signed[1]} to {signed[2]})"


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="the result with its intervals")
    options = parser.parse_args()
    content = read_json(options.result)
    rows = compare(content)
    print("\n".join(lines(rows)))
    if options.output:
        write_json(options.output, {**content, "comparisons": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
