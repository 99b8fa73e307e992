"""``medkd_cross_validate``: put the folds of a run together."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from medkd import api
from medkd.cli.common import parser, run
from medkd.core.paths import Root


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
    from medkd.evaluation.cross_validation import CROSS_VALIDATION, scoring_of

    root = Root.resolve(options.root)
    folder = root.results / root.dataset_name(options.dataset) / options.run
    merged = api.cross_validate(options.dataset, options.run, root=options.root)
    print(scoring_of(folder).text(merged))
    print(f"written: {folder / CROSS_VALIDATION / 'summary.json'}")
