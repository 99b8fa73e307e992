"""``medkd_report``: one page that shows what distillation did."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from medkd import api
from medkd.cli.common import given, parser, positive, run
from medkd.core.errors import DataError
from medkd.core.paths import Root


def main(argv: Sequence[str] | None = None) -> int:
    """Write ``report.html`` for the runs of a data set."""
    arguments = parser(
        "Write one self-contained page that answers whether the student may replace the teacher: teacher, student "
        "alone and distilled students side by side, with pictures and curves; its numbers lie beside it as "
        ".csv and .tex.",
        "medkd_report 4 -o report.html --runs 'unet_tiny*' res_unet__3d_fullres",
    )
    arguments.add_argument("dataset", metavar="DATASET", help="number or full name")
    arguments.add_argument(
        "-o", "--output", type=Path, help="the page, or a folder for it (default: <root>/results/DATASET/report.html)"
    )
    arguments.add_argument(
        "--fold", help="show this fold only (default: the folds that all scored runs have in common)"
    )
    arguments.add_argument(
        "--runs", nargs="+", default=(), metavar="RUN", help="names or patterns of the runs to show (default: all)"
    )
    arguments.add_argument(
        "--margin",
        type=float,
        default=0.01,
        help="loss of Dice or AP up to which a student may replace its teacher (default: 0.01)",
    )
    arguments.add_argument(
        "--measure",
        action="store_true",
        help="first time all trained runs together on one scan or image, in turns, through the predictor; the times "
        "are kept in latency.json beside the runs and shown by every later report",
    )
    arguments.add_argument(
        "--exports", nargs="+", type=Path, metavar="FOLDER", help="of --measure: exported models that take turns, too"
    )
    arguments.add_argument("--repetitions", type=positive, help="of --measure (default: 5 for scans, 9 for images)")
    arguments.add_argument("--device", help="of --measure: cuda, cpu or mps (default: cuda where present)")
    return run(_report, arguments, argv)


def _report(options: argparse.Namespace) -> None:
    from medkd.evaluation.report.write import check_report, make_report

    page = {name: getattr(options, name) for name in ("root", "output", "fold", "runs", "margin")}
    if options.measure:
        check_report(options.dataset, **page)
        _measure(options)
    elif given(options, ("repetitions", "device", "exports")):
        raise DataError(
            "--repetitions, --device and --exports are for measuring; give --measure too, or leave them out."
        )
    path = make_report(options.dataset, **page)
    print(
        f"written: {path}, and its numbers beside it as {path.with_suffix('.csv').name} and "
        f"{path.with_suffix('.tex').name}"
    )


def _measure(options: argparse.Namespace) -> None:
    from medkd.core.timing import TIMINGS_FILE, Spread, readable_seconds

    root = Root.resolve(options.root)
    name = root.dataset_name(options.dataset)
    chosen = given(options, ("repetitions", "device", "exports"))
    timings = api.measure(options.dataset, root=options.root, runs=options.runs, **chosen)
    exported = {export.name: export.seconds for export in timings.exports}
    for run_name, seconds in {**timings.seconds, **exported}.items():
        spread = Spread.of(seconds)
        print(
            f"{run_name}: {readable_seconds(spread.median)} per {timings.unit} "
            f"({readable_seconds(spread.low)} to {readable_seconds(spread.high)})"
        )
    print(f"written: {root.results / name / TIMINGS_FILE}")
