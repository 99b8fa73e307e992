"""``medkd_plan_and_preprocess``: from raw data sets to plans and preprocessed cases."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from medkd import api
from medkd.cli.common import add_options_of_tasks, axes, axis, given, parser, positive, run
from medkd.tasks import every_task, task_of_dataset


def main(argv: Sequence[str] | None = None) -> int:
    """Plan and preprocess one or more data sets."""
    return run(_main, _arguments, argv)


def _arguments() -> argparse.ArgumentParser:
    result = parser(
        "Verify, fingerprint, plan and preprocess raw data sets. What did not change is not done again; an edited "
        "plans.json is kept.",
        "medkd_plan_and_preprocess -d 4 -c 3d_fullres",
    )
    result.add_argument("-d", "--dataset", nargs="+", required=True, metavar="DATASET", help="numbers or full names")
    result.add_argument(
        "-c",
        "--configuration",
        dest="configurations",
        nargs="+",
        metavar="NAME",
        help="2d, 3d_lowres, 3d_fullres or one of your own (default: all planned)",
    )
    result.add_argument(
        "-np", "--workers", type=positive, metavar="N", help="cases at a time (default: from cores and free memory)"
    )
    _add_wishes(result)
    result.add_argument(
        "--overwrite-plan", action="store_true", help="make plans.json anew; configurations of your own are kept"
    )
    result.add_argument("--strict", action="store_true", help="refuse raw data that raise a warning")
    result.add_argument("--no-verify", action="store_true", help="do not check the raw data first")
    add_options_of_tasks(result, "prepare")
    return result


def _add_wishes(result: argparse.ArgumentParser) -> None:
    """What a new plan is made for."""
    result.add_argument(
        "--gpu-memory",
        type=_above_zero,
        metavar="GB",
        help="plan for this much GPU memory (default: 8, larger presets 24 and 40)",
    )
    result.add_argument(
        "--protocol",
        metavar="NAME",
        help="plan and train as a publication: acf_bckd, mmseg_kd, sfd_kd, or your own file; NAME:VARIANT",
    )
    result.add_argument(
        "--like",
        type=Path,
        metavar="FOLDER",
        help="prepare for the students of this model: an nnU-Net v2 folder, a MONAI bundle, one with teacher.json, or "
        "a run of medkd on another data set",
    )
    result.add_argument(
        "--reorient",
        metavar="CODE",
        help="turn all scans to this axis code first, for example RAS; predictions go back (default: as stored)",
    )
    result.add_argument(
        "--mirror-axes",
        type=axis,
        nargs="+",
        metavar="AXIS",
        help="axes of the 3D network (0, 1, 2) that training may mirror, or none: for structures that differ by side "
        "only (default: all)",
    )
    result.add_argument(
        "--image-size",
        type=positive,
        metavar="PIXELS",
        help="detection: side of the input, a multiple of 32 (default: planned)",
    )
    result.add_argument(
        "--batch-size", type=positive, metavar="N", help="detection: images per step (default: planned)"
    )


def _main(options: argparse.Namespace) -> None:
    for dataset in options.dataset:
        plan = api.plan_and_preprocess(
            dataset,
            root=options.root,
            workers=options.workers,
            overwrite_plan=options.overwrite_plan,
            verify=not options.no_verify,
            strict=options.strict,
            protocol=options.protocol,
            configurations=options.configurations,
            gpu_memory_gb=options.gpu_memory,
            like=options.like,
            orientation=options.reorient,
            mirror_axes=axes(options.mirror_axes),
            image_size=options.image_size,
            batch_size=options.batch_size,
            **_of_outside(options),
        )
        print(task_of_dataset(dataset, options.root).describe_plan(plan))


def _of_outside(options: argparse.Namespace) -> dict[str, Any]:
    """What was given of the options that tasks from outside the package bring."""
    names = {name for task in every_task() if task.add_options is not None for name in task.options_of("prepare")}
    return given(options, sorted(names))


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, found '{text}'")
    return value
