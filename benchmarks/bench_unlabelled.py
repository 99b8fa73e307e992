"""Scans without labels on the hippocampus data: a student alone on 20 labels, with a teacher and 140 scans more, with
no label at all, and alone on all 160.

``python -m benchmarks.bench_unlabelled DATA MODEL ROOT`` does what is missing and goes on where it stopped.
``--epochs``, ``--iterations``, ``--training`` and ``--held-out`` make it short, to see that it works; the result says
with what it was made.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medkd import api
from medkd.core.files import read_json, write_json
from medkd.core.run import DATASET_FILE, FINAL, PLANS_FILE
from medkd.core.splits import SPLITS_FILE, Split, load_splits, save_splits

FEW, ALL = "Dataset004_FewLabels", "Dataset005_AllLabels"
_SHARE = 8  # 20 of 160 scans have labels
_STUDENT, _METHOD, _FOLD = "unet_tiny", "kd", 0
_ARMS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "alone, 20 labels": (FEW, None),
    "teacher, 20 labels and 140 scans": (FEW, {"targets": "cached"}),
    "teacher, no label, 160 scans": (FEW, {"targets": "cached", "labels": "none"}),
    "alone, 160 labels": (ALL, None),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with imagesTr/CASE.nii.gz and labelsTr/CASE.nii.gz")
    parser.add_argument("model", type=Path, help="the teacher, a model folder of nnU-Net with its splits_final.json")
    parser.add_argument("root", type=Path, help="where data sets and runs are kept")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--training", type=int, help="so many training scans only, an eighth of them labelled")
    parser.add_argument("--held-out", type=int, help="judge on so many cases only")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", type=Path, help="result (default: ROOT/unlabelled.json)")
    arguments = parser.parse_args(argv)
    for name in (FEW, ALL):
        prepare(arguments, name)
    found: dict[str, Any] = {"epochs": arguments.epochs, "iterations": arguments.iterations, "arms": {}}
    for seed in arguments.seeds:
        for arm in _ARMS:
            scores = train_arm(arguments, arm, seed)
            found["arms"].setdefault(arm, {})[str(seed)] = {"dice": float(np.mean(scores)), "cases": scores}
            write_json(arguments.output or arguments.root / "unlabelled.json", found)
    return 0


def prepare(arguments: argparse.Namespace, name: str) -> None:
    """The raw data set, with all training labels or with the first 20, preprocessed like the teacher."""
    data, model, root = arguments.data, arguments.model, arguments.root
    split = load_splits(model / SPLITS_FILE)[_FOLD]
    training, judged = split.train[: arguments.training], split.val[: arguments.held_out]
    labelled = training if name == ALL else training[: max(1, len(training) // _SHARE)]
    raw = root / "raw" / name
    for case in (*training, *judged):
        known = case in labelled or case in judged
        _link(data / "imagesTr" / f"{case}.nii.gz", raw / ("imagesTr" if known else "imagesUn") / f"{case}_0000.nii.gz")
        if known:
            _link(data / "labelsTr" / f"{case}.nii.gz", raw / "labelsTr" / f"{case}.nii.gz")
    description = read_json(model / DATASET_FILE)
    write_json(raw / DATASET_FILE, {**description, "numTraining": len(labelled) + len(judged)})
    folder = root / "preprocessed" / name
    if (folder / PLANS_FILE).exists():
        api.plan_and_preprocess(name, root=root)
    else:
        api.plan_and_preprocess(name, root=root, like=model)
    save_splits(folder / SPLITS_FILE, [Split(tuple(labelled), tuple(judged))])


def train_arm(arguments: argparse.Namespace, arm: str, seed: int) -> list[float]:
    """Train what is missing of one arm; the mean foreground Dice of each case on which it is judged."""
    name, taught = _ARMS[arm]
    tag = f"seed{seed}" + ("_nolabels" if taught and "labels" in taught else "")
    settings: dict[str, Any] = {
        "root": arguments.root,
        "epochs": arguments.epochs,
        "iterations_per_epoch": arguments.iterations,
        "batch_size": 2,
        "seed": seed,
        "tag": tag,
        "resume": True,
    }
    if taught is None:
        folder = api.train(name, _STUDENT, _FOLD, **settings)
    else:
        folder = api.train_distill(name, arguments.model, _STUDENT, _METHOD, _FOLD, **settings, **taught)
    if not (folder / FINAL).exists():
        raise RuntimeError(f"{folder} was not finished")
    summary = read_json(folder / "validation" / "summary.json")
    scores = []
    for case in summary["metric_per_case"]:
        values = [entry["Dice"] for key, entry in case["metrics"].items() if key != "0"]
        scores.append(float(np.nanmean(values)))
    return scores


def _link(source: Path, target: Path) -> None:
    if not source.exists():
        raise FileNotFoundError(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        target.symlink_to(source.resolve())


if __name__ == "__main__":
    raise SystemExit(main())
