"""``medkd_compress``: a family of small students of one teacher, and which of them may replace it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from medkd.api.compress_settings import HANDED_OVER
from medkd.cli.common import given, parser, run
from medkd.cli.training_options import add_target_options, add_training_options, known_settings, training_settings
from medkd.core.allocator import reuse_freed_memory

_OWN = ("sizes", "tolerance", "fold", "method")  # beside what every training gets
_WITHOUT = {"resume", "overwrite", "no_validate"}  # follow from what is there


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_compress``."""
    return run(_compress, _arguments, argv)


def _arguments() -> argparse.ArgumentParser:
    arguments = parser(
        "Train students with a fraction of a U-Net's channels, started from its weights, and say which may replace "
        "it.\nPrepares the data like the teacher, scores it, trains one student per size and one alone, measures "
        "all of them\non the CPU and writes the report. What is finished is not done again: a killed command goes on "
        "when it is given again.",
        "medkd_compress MODEL -d 4\n  medkd_compress MODEL -d 4 --sizes 2 4 --tolerance 0.02 --epochs 100 --dry-run",
    )
    add = arguments.add_argument
    add("model", metavar="MODEL", help="the teacher: a model folder of nnU-Net v2, or a run of the data set")
    add("-d", dest="dataset", required=True, metavar="DATASET", help="number or full name, for example 4")
    add(
        "--sizes",
        nargs="+",
        type=int,
        metavar="N",
        help="by what the teacher's channels are divided, one student each (default: 2 4 8)",
    )
    add(
        "--tolerance",
        type=float,
        help="loss of Dice that is accepted; the whole 95 %% interval must keep to it (default: 0.01)",
    )
    add("--fold", default="0", help="of teacher and students, 0 to 4 (default: 0)")
    add("--method", default="none", help="that teaches beside the start, see medkd_list methods (default: none)")
    decided = _WITHOUT | (known_settings() - set(HANDED_OVER))
    add_target_options(arguments, decided)
    add_training_options(arguments, decided)
    return arguments


def _compress(options: argparse.Namespace) -> None:
    from medkd.api.compress import compress, compress_plan

    settings = {**training_settings(options), **given(options, _OWN)}
    settings.pop("root", None)
    if options.dry_run:
        print("\n".join(compress_plan(options.model, options.dataset, root=options.root, **settings)))
        return
    reuse_freed_memory()
    found = compress(options.model, options.dataset, root=options.root, say=_say, **settings)
    print("\n".join(["", *found.lines(), "", f"written: {found.report}, and its numbers beside it as .json"]))


def _say(line: str) -> None:
    print(line, flush=True)
