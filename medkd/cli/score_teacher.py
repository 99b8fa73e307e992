"""``medkd_score_teacher``: the row of an imported teacher in the report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from medkd import api
from medkd.cli.common import parser, run
from medkd.core.allocator import reuse_freed_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_score_teacher``."""
    return run(_score, _arguments, argv)


def _arguments() -> argparse.ArgumentParser:
    arguments = parser(
        "Predict and score a fold's validation cases with a teacher that was trained elsewhere or on other data, so "
        "that medkd_report shows it beside its students.",
        "medkd_score_teacher 4 MODEL 0",
    )
    arguments.add_argument("dataset", metavar="DATASET", help="number or full name, for example 4")
    arguments.add_argument(
        "teacher",
        metavar="TEACHER",
        type=Path,
        help="a model folder of nnU-Net v2, a MONAI bundle, one with a teacher.json, or a run on another data set",
    )
    arguments.add_argument("fold", metavar="FOLD", help="0 to 4")
    arguments.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: cuda where present)")
    return arguments


def _score(options: argparse.Namespace) -> None:
    reuse_freed_memory()
    print(api.score_teacher(options.dataset, options.teacher, options.fold, root=options.root, device=options.device))
