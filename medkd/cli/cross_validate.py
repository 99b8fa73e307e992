"""``medkd_cross_validate``: put the folds of a run together."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from medkd.cli.common import parser, run
from medkd.core.files import read_json
from medkd.core.paths import Root
from medkd.core.run import is_detection
from medkd.evaluation.segmentation.cross_validation import FOLDS, cross_validate
from medkd.evaluation.segmentation.table import summary_text


def main(argv: Sequence[str] | None = None) -> int:
    """Merge the folds' validation scores into ``<run>/crossval/summary.json`` and print them."""
    arguments = parser(
        "Put the validation scores of a run's folds together, every case once, with confidence intervals over all "
        "cases.",
        "medkd_cross_validate 4 unet_tiny__3d_fullres__kd__from_res_unet",
    )
    arguments.add_argument("dataset", metavar="DATASET", help="number or full name")
    arguments.add_argument("run", metavar="RUN", help="name of a run, for example res_unet__3d_fullres")
    return run(_cross_validate, arguments, argv)


def _cross_validate(options: argparse.Namespace) -> None:
    root = Root.resolve(options.root)
    name = root.dataset_name(options.dataset)
    splits = root.preprocessed / name / "splits_final.json"
    expected = len(read_json(splits)) if splits.exists() else FOLDS
    folder = root.results / name / options.run
    if is_detection(folder):
        _cross_validate_boxes(folder, expected)
        return
    summary = cross_validate(folder, expected=expected)
    print(summary_text(summary))
    for fold, means in summary.extra["fold_means"].items():
        print(f"fold {fold}: Dice {_number(means['foreground']['Dice'])} over {means['cases']} cases")
    print(f"written: {folder / 'crossval' / 'summary.json'}")


def _cross_validate_boxes(folder: Path, expected: int) -> None:
    from medkd.evaluation.detection.cross_validation import cross_validate_detection
    from medkd.evaluation.detection.results import summary_text as boxes_text

    summary = cross_validate_detection(folder, expected=expected)
    print(boxes_text(summary))
    for fold, means in summary.extra["fold_means"].items():
        print(f"fold {fold}: AP {_number(means['AP'])}, AP50 {_number(means['AP50'])} over {means['images']} images")
    print(f"written: {folder / 'crossval' / 'summary.json'}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
