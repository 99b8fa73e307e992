"""``medkd_train_distill``: train a student with a teacher."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from medkd import api
from medkd.cli import common
from medkd.cli.training_options import add_target_options, add_training_options, training_settings
from medkd.core.allocator import reuse_freed_memory

_TEACHER = (
    "a network trained for this data set, a run, or a model folder of nnU-Net v2; for detection also ultralytics' "
    "best.pt with "
    "a teacher.json beside it"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_train_distill``."""
    return common.run(_run, _arguments, argv)


def _arguments() -> argparse.ArgumentParser:
    parser = common.parser(
        "Train a student with a teacher on one fold and score it on the fold's validation cases. The teacher must not "
        "have seen them.",
        "medkd_train_distill 4 res_unet unet_tiny kd 0 --set kd.temperature=2",
    )
    parser.add_argument("dataset", metavar="DATASET", help="number or full name, for example 4")
    parser.add_argument("teacher", metavar="TEACHER", help=_TEACHER)
    parser.add_argument("student", metavar="STUDENT", help="a network name, see medkd_list networks")
    parser.add_argument(
        "method",
        metavar="METHOD",
        help="a method, or several joined by + to be one loss, see medkd_list methods; none trains the student alone. "
        "Several with commas between them are trained side by side, a run each, with one pass of the teacher for all",
    )
    parser.add_argument("fold", metavar="FOLD", help="0 to 4, all (cases), or folds (one after another)")
    add_target_options(parser)
    add_training_options(parser)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from medkd.training.ranks import current

    reuse_freed_memory()
    settings = training_settings(arguments)
    teacher, student, method = arguments.teacher, arguments.student, arguments.method
    methods = common.names(method) or (method,)
    if arguments.dry_run:
        joined = ",".join(methods)
        lines = api.dry_run(arguments.dataset, student, arguments.fold, teacher=teacher, method=joined, **settings)
        print("\n".join(lines))
    elif len(methods) == 1:
        folder = api.train_distill(arguments.dataset, teacher, student, methods[0], arguments.fold, **settings)
        if current().first:
            print(folder)
    else:
        folders = api.train_side_by_side(arguments.dataset, teacher, student, methods, arguments.fold, **settings)
        print("\n".join(map(str, folders)))
