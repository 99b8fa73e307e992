"""``medkd_evaluate``: score a folder of predictions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medkd.cli.common import parser, run
from medkd.core.errors import DataError

if TYPE_CHECKING:
    from medkd.core.labels import LabelSpec
    from medkd.evaluation.segmentation.results import Summary

PREDICTIONS_FILE = "predictions.json"
_FOR_LABEL_MAPS = ("legacy", "hd95", "nsd_tolerance", "file_ending")
_FOR_BOXES = ("hit", "exclude")


def main(argv: Sequence[str] | None = None) -> int:
    """Score predictions against references, print a table and write ``summary.json``."""
    arguments = parser(
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
    arguments.add_argument("-o", "--output", type=Path, help="where to write (default: PREDICTIONS/summary.json)")
    arguments.add_argument(
        "--dataset-json",
        type=Path,
        help="names the labels (default: beside PREDICTIONS or REFERENCES, or their parents)",
    )
    arguments.add_argument(
        "--labels", help="instead of dataset.json: names of the labels 1, 2, … joined by commas; classes to score"
    )
    arguments.add_argument("--file-ending", help="of both (default: dataset.json's, else .nii.gz)")
    arguments.add_argument(
        "--nsd-tolerance",
        type=float,
        metavar="MM",
        help="of the surface distance (default: 2 mm)",
    )
    arguments.add_argument("--hd95", choices=("max", "pooled"), help="max as MONAI, pooled as MedPy (default: max)")
    arguments.add_argument(
        "--legacy",
        nargs="*",
        type=float,
        metavar="MM",
        help="beside the correct scores, those of ACF-BCKD's tables with their defects: HD95 in voxels (of the files, or "
        "of Z Y X mm)",
    )
    arguments.add_argument(
        "--allow-missing", action="store_true", help="count a missing prediction as an empty one instead of refusing"
    )
    arguments.add_argument("-np", "--workers", type=int, help="threads (default: as many as cores and memory allow)")
    boxes = arguments.add_argument_group("for boxes")
    boxes.add_argument("--hit", metavar="IOU", help="what finds a box for FROC: an IoU, or centre (default: 0.5)")
    boxes.add_argument(
        "--exclude",
        metavar="CLASSES",
        help="classes to leave out of a second mean and of FROC (default: text, where there is such a class)",
    )
    return run(_evaluate, arguments, argv)


def _evaluate(options: argparse.Namespace) -> None:
    boxes = options.predictions.suffix == ".json" or (options.predictions / PREDICTIONS_FILE).exists()
    foreign = [name for name in (_FOR_LABEL_MAPS if boxes else _FOR_BOXES) if getattr(options, name) is not None]
    if foreign:
        held, other = ("boxes", "label maps") if boxes else ("label maps", "boxes")
        raise DataError(
            f"--{foreign[0].replace('_', '-')} is for {other}, but {options.predictions} holds {held}; leave it out."
        )
    if boxes:
        _evaluate_boxes(options)
    else:
        _evaluate_label_maps(options)


def _evaluate_label_maps(options: argparse.Namespace) -> None:
    from medkd.evaluation.segmentation.cases import DEFAULT_TOLERANCE_MM
    from medkd.evaluation.segmentation.folder import evaluate_folder
    from medkd.evaluation.segmentation.results import summary_text

    labels, described = _labels(options)
    ending = options.file_ending or described
    if options.legacy is not None:
        sizes = options.legacy
        if len(sizes) not in (0, 3) or min(sizes, default=1) <= 0 or options.allow_missing:
            raise DataError("--legacy takes no value or three voxel sizes in mm (Z Y X), and no --allow-missing.")
    summary = evaluate_folder(
        options.predictions,
        options.references,
        labels,
        file_ending=ending,
        workers=options.workers,
        nsd_tolerance_mm=DEFAULT_TOLERANCE_MM if options.nsd_tolerance is None else options.nsd_tolerance,
        definition=options.hd95 or "max",
        allow_missing=options.allow_missing,
        progress=True,
    )
    if options.legacy is not None:
        summary = _with_legacy(options, summary, labels, ending)
    output = options.output or options.predictions / "summary.json"
    summary.save(output)
    print(summary_text(summary))
    print(f"written: {output}")


def _with_legacy(options: argparse.Namespace, summary: Summary, labels: LabelSpec, ending: str) -> Summary:
    from medkd.core.serial import to_data
    from medkd.evaluation.segmentation import legacy

    scores = legacy.legacy_scores(
        options.predictions,
        options.references,
        labels,
        [case.name.removesuffix(ending) for case in summary.cases],
        file_ending=ending,
        voxel_mm=options.legacy or None,
        workers=options.workers or 1,
    )
    print(scores.text())
    return replace(summary, extra={**summary.extra, legacy.KEY: to_data(scores)})


def _evaluate_boxes(options: argparse.Namespace) -> None:
    from medkd.evaluation.detection.folder import evaluate_detection_folder
    from medkd.evaluation.detection.results import rules_of
    from medkd.evaluation.detection.results import summary_text as boxes_text

    summary = evaluate_detection_folder(
        options.predictions,
        options.references,
        dataset_json=options.dataset_json,
        classes=_names(options.labels),
        allow_missing=options.allow_missing,
        rules=rules_of("0.5" if options.hit is None else options.hit, _names(options.exclude)),
    )
    folder = options.predictions.parent if options.predictions.suffix == ".json" else options.predictions
    output = options.output or folder / "summary.json"
    summary.save(output)
    print(boxes_text(summary))
    print(f"written: {output}")


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = (name.strip() for name in text.split(","))
    return tuple(name for name in names if name)


def _labels(options: argparse.Namespace) -> tuple[LabelSpec, str]:
    """The structures, and the ending of the label maps."""
    from medkd.core.dataset import DatasetDescription
    from medkd.core.labels import LabelSpec

    names = _names(options.labels)
    if names == ():
        raise DataError(
            f"--labels: expected names joined by commas, for example liver,spleen; found '{options.labels}'."
        )
    if names is not None:
        return LabelSpec.from_names(names), ".nii.gz"
    found = options.dataset_json
    for folder in (options.predictions, options.references):
        for place in (folder, folder.absolute().parent):
            if found is None and (place / "dataset.json").exists():
                found = place / "dataset.json"
    if found is None:
        raise DataError(
            "No dataset.json beside the predictions or references; give --dataset-json PATH, or --labels "
            "liver,spleen,…."
        )
    description = DatasetDescription.load(found)
    return description.labels, description.file_ending
