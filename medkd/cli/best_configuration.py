"""``medkd_best_configuration``: which configuration of a network predicts best, alone or with another."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from medkd.cli import common
from medkd.core.allocator import reuse_freed_memory
from medkd.core.paths import Root


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_best_configuration``."""
    return common.run(_compare, _arguments, argv)


def _arguments() -> argparse.ArgumentParser:
    arguments = common.parser(
        "Compare the configurations of a network (2d, 3d_fullres, …), and each two of them together, by the Dice of "
        "validation cases, which their networks have not seen; says how to predict with the best.",
        "medkd_best_configuration 4 plain_unet",
    )
    arguments.add_argument("dataset", metavar="DATASET", help="number or full name")
    arguments.add_argument(
        "runs", nargs="+", metavar="RUN", help="a network, for its runs in all configurations, or names of runs"
    )
    arguments.add_argument(
        "-f",
        dest="folds",
        nargs="+",
        metavar="FOLD",
        help="folds on whose validation cases they are compared (default: all that every run has scored)",
    )
    arguments.add_argument(
        "--no-ensembles", action="store_true", help="compare the runs only, of which nothing is predicted anew"
    )
    arguments.add_argument(
        "--device", help="where two predict together: cuda, cpu or mps (default: cuda where present)"
    )
    return arguments


def _compare(options: argparse.Namespace) -> None:
    from medkd.api.best_configuration import BEST_CONFIGURATION_FILE, best_configuration

    reuse_freed_memory()
    found = best_configuration(
        options.dataset,
        options.runs,
        root=options.root,
        folds=options.folds,
        ensembles=not options.no_ensembles,
        device=options.device,
    )
    print(found.text())
    print(f"written: {Root.resolve(options.root).results / found.dataset / BEST_CONFIGURATION_FILE}")


if __name__ == "__main__":
    raise SystemExit(main())
