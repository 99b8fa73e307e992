"""``medkd_report``: one page that shows what distillation did."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from medkd.cli.common import parser, run
from medkd.evaluation.report.data import MARGIN
from medkd.evaluation.report.write import make_report


def main(argv: Sequence[str] | None = None) -> int:
    """Write ``report.html`` for the runs of a data set."""
    arguments = parser(
        "Write one self-contained page that answers whether the student may replace the teacher: teacher, student alone "
        "and distilled students side by side, with pictures and curves; its numbers lie beside it as .csv and .tex.",
        "medkd_report 4 -o report.html --runs 'unet_tiny*' res_unet__3d_fullres",
    )
    arguments.add_argument("dataset", metavar="DATASET", help="number or full name")
    arguments.add_argument("-o", "--output", type=Path, help="the page (default: <root>/results/DATASET/report.html)")
    arguments.add_argument(
        "--fold", help="show this fold only (default: the folds that all scored runs have in common)"
    )
    arguments.add_argument(
        "--runs", nargs="+", default=(), metavar="RUN", help="names or patterns of the runs to show (default: all)"
    )
    arguments.add_argument(
        "--margin",
        type=float,
        default=MARGIN,
        help=f"loss of Dice or AP up to which a student may replace its teacher (default: {MARGIN})",
    )
    return run(_report, arguments, argv)


def _report(options: argparse.Namespace) -> None:
    path = make_report(
        options.dataset,
        root=options.root,
        output=options.output,
        fold=options.fold,
        runs=options.runs,
        margin=options.margin,
    )
    print(
        f"written: {path}, and its numbers beside it as {path.with_suffix('.csv').name} and "
        f"{path.with_suffix('.tex').name}"
    )
