"""What INT8 costs on scans on which nothing was chosen: exported networks and their quantised twins, map by map.

    python -m benchmarks.bench_int8 --data SCANS --labels LABELS onnx=FLOAT,INT8 openvino=FLOAT,INT8

Without mirroring, as ``medkd_export --int8`` compares. Writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import RESULTS, dice_of_labels, machine
from medkd.core.dataset import CaseFiles, DatasetDescription
from medkd.core.files import read_json, write_json
from medkd.evaluation.scoring import description_near
from medkd.evaluation.statistics import groups_of, paired_difference
from medkd.inference.inputs import find_cases
from medkd.io.volumes import read_image, read_label
from medkd.runtime.package import RECORD
from medkd.runtime.predictor import RuntimePredictor


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("pairs", nargs="+", metavar="NAME=FLOAT,INT8", help="folders that medkd_export made")
    arguments.add_argument("--data", type=Path, required=True, help="folder of scans")
    arguments.add_argument("--labels", type=Path, required=True, help="their label maps")
    arguments.add_argument("--name", default="int8", help="of the results' file")
    options = arguments.parse_args()
    cases = find_cases(options.data, 1)
    rows: dict[str, Any] = {}
    for text in options.pairs:
        name, _, folders = text.partition("=")
        whole, _, quantised = folders.partition(",")
        rows[name] = _compared(Path(whole), Path(quantised), cases, options.labels)
        print(name, rows[name])
    write_json(RESULTS / f"{options.name}.json", {"machine": machine(), "engines": rows})


def _compared(whole: Path, quantised: Path, cases: Sequence[CaseFiles], labels: Path) -> dict[str, Any]:
    """The loss between both networks' label maps on scans that did not choose, and both against the reference."""
    stated = read_json(quantised / RECORD)["int8"]
    others = [case for case in cases if case.case not in stated["scans"]]
    predictors = [RuntimePredictor.open(folder, mirror=False, threads=1) for folder in (whole, quantised)]
    agreement: list[list[float]] = []
    dice: list[list[float]] = []
    for case in others:
        image, geometry = read_image(case.images, case.case)
        truth = read_label(labels / f"{case.case}.nii.gz").array
        before, after = (predictor.predict_case(image, geometry, case.case) for predictor in predictors)
        agreement.append(dice_of_labels(after, before))
        dice.append([float(np.mean(dice_of_labels(found, truth))) for found in (before, after)])
    losses = 1 - np.array([np.mean(scores) for scores in agreement])
    against = np.array(dice)
    change = paired_difference(against[:, 1], against[:, 0], groups=_patients([case.case for case in others], labels))
    return {
        "scans": len(others),
        "loss": round(float(losses.mean()), 5),
        "worst_structure": round(min(map(min, agreement)), 5),
        "loss_stated_at_export": round(stated["loss"], 5),
        "dice_float": round(float(against[:, 0].mean()), 5),
        "dice_int8": round(float(against[:, 1].mean()), 5),
        "dice_difference": [round(value, 5) for value in (change.mean, change.low, change.high)],
    }


def _patients(cases: Sequence[str], labels: Path) -> np.ndarray:
    """Place of each case's patient, where a ``dataset.json`` near the label maps names them."""
    described = description_near(labels)
    return groups_of(cases, DatasetDescription.load(described).patients if described is not None else {})


if __name__ == "__main__":
    main()
