"""``medkd_train``: train a network alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from medkd import api
from medkd.cli import common
from medkd.cli.training_options import add_training_options, training_settings
from medkd.core.allocator import reuse_freed_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_train``."""
    return common.run(_run, _arguments, argv)


def _arguments() -> argparse.ArgumentParser:
    parser = common.parser(
        "Train a network alone on one fold and score it on the fold's validation cases.",
        "medkd_train 4 plain_unet 0 --epochs 250",
    )
    parser.add_argument("dataset", metavar="DATASET", help="number or full name, for example 4")
    parser.add_argument("network", metavar="NETWORK", help="a network name, see medkd_list networks")
    parser.add_argument("fold", metavar="FOLD", help="0 to 4, all (cases), or folds (one after another)")
    add_training_options(parser)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from medkd.training.ranks import current

    reuse_freed_memory()
    settings = training_settings(arguments)
    if arguments.dry_run:
        print("\n".join(api.dry_run(arguments.dataset, arguments.network, arguments.fold, **settings)))
        return
    folder = api.train(arguments.dataset, arguments.network, arguments.fold, **settings)
    if current().first:
        print(folder)
