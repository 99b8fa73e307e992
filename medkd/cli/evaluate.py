"""``medkd_evaluate``: score a folder of predictions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from medkd import api
from medkd.cli import common
from medkd.core.files import check_writable
from medkd.tasks import every_task, task_of_predictions

SUMMARY = "summary.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Score predictions against references, print a table and write ``summary.json``."""
    return common.run(_evaluate, _arguments, argv)


def _arguments() -> argparse.ArgumentParser:
    arguments = common.parser(
        "Score predicted label maps: Dice, IoU, HD95 and NSD per case and structure, in millimetres; or predicted "
        "boxes: COCO's average "
        "precision, FROC and AUC.",
        "medkd_evaluate predictions labelsTs -o summary.json --labels anterior,posterior",
    )
    arguments.add_argument(
        "predictions", type=Path, metavar="PREDICTIONS", help="folder with CASE.nii.gz, or with predictions.json"
    )
    arguments.add_argument(
        "references",
        type=Path,
        metavar="REFERENCES",
        help="folder with CASE.nii.gz; for boxes with CASE.json, or a raw data set",
    )
    arguments.add_argument(
        "-o", "--output", type=Path, help="file or folder to write to (default: PREDICTIONS/summary.json)"
    )
    arguments.add_argument(
        "--dataset-json",
        type=Path,
        help="names the labels (default: beside PREDICTIONS or REFERENCES, or their parents)",
    )
    arguments.add_argument(
        "--labels",
        type=common.names,
        help="instead of dataset.json: names of the labels 1, 2, … joined by commas; classes to score",
    )
    arguments.add_argument("--file-ending", help="of both (default: dataset.json's, else .nii.gz)")
    _add_metrics(arguments)
    arguments.add_argument(
        "--allow-missing", action="store_true", help="count a missing prediction as an empty one instead of refusing"
    )
    arguments.add_argument("-np", "--workers", type=int, help="threads (default: as many as cores and memory allow)")
    boxes = arguments.add_argument_group("for boxes")
    boxes.add_argument("--hit", metavar="IOU", help="what finds a box for FROC: an IoU, or centre (default: 0.5)")
    boxes.add_argument(
        "--exclude",
        metavar="CLASSES",
        type=common.names,
        help="classes to leave out of a second mean and of FROC (default: text, where there is such a class)",
    )
    common.add_options_of_tasks(arguments, "evaluate")
    return arguments


def _add_metrics(arguments: argparse.ArgumentParser) -> None:
    """Options of the metrics of label maps."""
    arguments.add_argument(
        "--nsd-tolerance",
        type=float,
        metavar="MM",
        help="of the surface distance (default: 2 mm)",
    )
    arguments.add_argument("--hd95", choices=("max", "pooled"), help="max as MONAI, pooled as MedPy (default: max)")
    arguments.add_argument(
        "--metrics",
        type=common.names,
        metavar="NAMES",
        help="further ones, joined by commas: ASD (mean surface distance from prediction to reference), ASSD (of both "
        "directions)",
    )
    arguments.add_argument(
        "--legacy",
        nargs="*",
        type=float,
        metavar="MM",
        help="beside the correct scores, those of ACF-BCKD's tables with their defects: HD95 in voxels (of the files, "
        "or of Z Y X mm)",
    )


def _evaluate(options: argparse.Namespace) -> None:
    folder = options.predictions.parent if options.predictions.suffix == ".json" else options.predictions
    output = options.output or folder / SUMMARY
    if output.is_dir():
        output = output / SUMMARY
    if options.output or folder.is_dir():  # else there is nothing to score
        check_writable(output)
    own = {name for task in every_task() for name in task.options_of("evaluate")}
    settings = common.given(options, sorted(own))
    summary = api.evaluate(
        options.predictions,
        options.references,
        labels=options.labels,
        dataset_json=options.dataset_json,
        allow_missing=options.allow_missing,
        workers=options.workers,
        progress=True,
        **settings,
    )
    print(task_of_predictions(options.predictions).summary_text(summary), flush=True)
    summary.save(output)
    print(f"written: {output}")
