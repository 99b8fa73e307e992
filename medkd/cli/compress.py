"""``medkd_compress``: a family of small students of one teacher, and which of them may replace it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from medkd.cli.common import given, parser, positive, run
from medkd.core.allocator import reuse_freed_memory

_SETTINGS = (
    *("epochs", "iterations_per_epoch", "batch_size", "learning_rate", "device", "precision", "seed", "workers"),
    *("patch_size", "tag", "sizes", "tolerance", "fold", "method"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_compress``."""
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
    add("--epochs", type=positive, help="of every training (default: the teacher's plan, 1000)")
    add("--iterations-per-epoch", type=positive, help="steps of an epoch (default: 250)")
    add("--batch-size", type=positive, help="patches per step (default: the plan's)")
    add("--learning-rate", type=float, help="at the start (default: 0.01)")
    add("--patch-size", type=positive, nargs="+", metavar="N", help="voxels per axis (default: the teacher's)")
    add("--device", help="of the trainings: cpu, cuda, cuda:N or mps (default: cuda where present)")
    add("--precision", choices=("fp32", "bf16", "fp16"), help="of the trainings (default: fp16 on CUDA, else fp32)")
    add("--seed", type=int, help="everything random follows from it (default: 0)")
    add("--workers", type=int, help="loader processes; 0 loads in the training process (default: from the cores)")
    add("--tag", help="text added to the runs' names, for another try with other settings")
    add("--dry-run", action="store_true", help="print what is done and what is to do; write and start nothing")
    return run(_compress, arguments, argv)


def _compress(options: argparse.Namespace) -> None:
    from medkd.api.compress import compress, compress_plan

    settings = given(options, _SETTINGS)
    if "patch_size" in settings:
        settings["patch_size"] = tuple(settings["patch_size"])
    if options.dry_run:
        print("\n".join(compress_plan(options.model, options.dataset, root=options.root, **settings)))
        return
    reuse_freed_memory()
    found = compress(options.model, options.dataset, root=options.root, say=_say, **settings)
    print("\n".join(["", *found.lines(), "", f"written: {found.report}, and its numbers beside it as .json"]))


def _say(line: str) -> None:
    print(line, flush=True)
