"""``medkd_cross_validate``: put the folds of a run together."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from medkd import api
from medkd.cli.common import parser, run
from medkd.core.paths import Root


def main(argv: Sequence[str] | None = None) -> int:
    """Merge the folds' validation scores into ``<run>/crossval/summary.json``, look for post-processing that helps, and
    print both.
    """
    arguments = parser(
        "Put the validation scores of a run's folds together, every case once, with confidence intervals over all "
        "cases; of label maps, find the structures of which the largest component alone scores better on these cases "
        "(postprocessing.json), as medkd_predict with the same folds then does.",
        "medkd_cross_validate 4 unet_tiny__3d_fullres__kd__from_res_unet",
    )
    arguments.add_argument("dataset", metavar="DATASET", help="number or full name")
    arguments.add_argument("run", metavar="RUN", help="name of a run, for example res_unet__3d_fullres")
    arguments.add_argument(
        "-f",
        dest="folds",
        nargs="+",
        metavar="FOLD",
        help="some folds, whose results go to crossval_0_1 (default: all that were validated)",
    )
    arguments.add_argument(
        "--no-postprocessing",
        dest="postprocessing",
        action="store_false",
        help="look for none, and remove what was found for these folds before",
    )
    return run(_cross_validate, arguments, argv)


def _cross_validate(options: argparse.Namespace) -> None:
    from medkd.evaluation.cross_validation import cross_validation_folder, scoring_of

    root = Root.resolve(options.root)
    folder = root.results / root.dataset_name(options.dataset) / options.run
    merged = api.cross_validate(
        options.dataset,
        options.run,
        root=options.root,
        folds=options.folds,
        postprocessing=options.postprocessing,
    )
    print(scoring_of(folder).text(merged))
    print(f"written: {cross_validation_folder(folder, options.folds) / 'summary.json'}")
