"""``medkd_train_distill``: train a student with a teacher."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from medkd.cli import common
from medkd.cli.training_options import (
    add_target_options,
    add_training_options,
    detector_options,
    is_detection,
    training_options,
)
from medkd.core.allocator import reuse_freed_memory

_TEACHER = (
    "a network trained for this data set, a run, or a model folder of nnU-Net v2; for detection also ultralytics' "
    "best.pt with a "
    "teacher.json beside it"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_train_distill``."""
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
        help="a method, or several joined by +, see medkd_list methods; none trains the student alone",
    )
    parser.add_argument("fold", metavar="FOLD", help="0 to 4, or all")
    parser.add_argument(
        "--set",
        action="append",
        metavar="METHOD.PARAMETER=VALUE",
        help="override a method's parameter; may be repeated",
    )
    add_target_options(parser)
    add_training_options(parser)
    return common.run(_run, parser, argv)


def _run(arguments: argparse.Namespace) -> None:
    reuse_freed_memory()
    if is_detection(arguments):
        _run_detection(arguments)
        return
    from medkd.training.api import dry_run, train_distill

    options = training_options(arguments)
    if arguments.dry_run:
        found = dry_run(
            arguments.dataset,
            arguments.student,
            arguments.fold,
            options,
            teacher=arguments.teacher,
            method=arguments.method,
        )
        print("\n".join(found.lines()))
        return
    folder = train_distill(
        arguments.dataset, arguments.teacher, arguments.student, arguments.method, arguments.fold, options
    )
    print(folder)


def _run_detection(arguments: argparse.Namespace) -> None:
    from medkd.detection.api import distill_detector, dry_run_detector

    options, teacher, method = detector_options(arguments), arguments.teacher, arguments.method
    if arguments.dry_run:
        print(
            "\n".join(dry_run_detector(arguments.dataset, arguments.student, arguments.fold, options, teacher, method))
        )
        return
    print(distill_detector(arguments.dataset, teacher, arguments.student, method, arguments.fold, options))
