"""``medkd_report``: one page that shows what distillation did."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from medkd.cli.common import parser, run
from medkd.evaluation.report.write import make_report


def main(argv: Sequence[str] | None = None) -> int:
    """Write ``report.html`` for the runs of a data set."""
    arguments = parser(
        "Write one self-contained page: teacher, student alone and distilled students side by side, with pictures and "
        "curves.",
        "medkd_report 4 -o report.html",
    )
    arguments.add_argument("dataset", metavar="DATASET", help="number or full name")
    arguments.add_argument("-o", "--output", type=Path, help="the page (default: <root>/results/DATASET/report.html)")
    arguments.add_argument(
        "--fold", help="show this fold only (default: the folds that all scored runs have in common)"
    )
    return run(_report, arguments, argv)


def _report(options: argparse.Namespace) -> None:
    path = make_report(options.dataset, root=options.root, output=options.output, fold=options.fold)
    print(f"written: {path}")
