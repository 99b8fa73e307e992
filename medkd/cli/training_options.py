"""The options that both training commands take."""

from __future__ import annotations

import argparse

from medkd.core.errors import MethodError
from medkd.training.options import TrainOptions


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of :class:`~medkd.training.options.TrainOptions` to a parser."""
    add = parser.add_argument
    add("-c", "--configuration", default="3d_fullres", help="2d, 3d_fullres or 3d_lowres (default: %(default)s)")
    add("--epochs", type=int, help="epochs (default: 1000, or the plan's protocol's)")
    add("--iterations-per-epoch", type=int, help="optimiser steps per epoch (default: 250, or the plan's protocol's)")
    add("--batch-size", type=int, help="patches per step (default: the plan's)")
    add("--patch-size", type=int, nargs="+", help="voxels per axis, for example 64 96 96 (default: the plan's)")
    add("--learning-rate", type=float, help="initial learning rate of the poly schedule (default: 0.01, or the plan's protocol's)")
    add("--width-divisor", type=int, default=1, help="divide the channels of a planned network by this (default: 1)")
    add("--device", help="cuda, cpu or mps (default: cuda where present)")
    add(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="default: fp16 on cuda, fp32 elsewhere; bf16 is faster on recent CPUs, but not right there on very small feature maps",
    )
    add("--seed", type=int, default=0, help="everything random follows from it (default: 0)")
    add("--workers", type=int, help="loader processes (default: from the cores; 0 loads in the training process)")
    add("--save-every", type=int, default=10, help="epochs between checkpoints (default: 10; at least every five minutes)")
    add("--tag", help="text added to the run's name, to keep runs with other settings apart")
    add("--no-validate", action="store_true", help="do not predict and score the validation cases at the end")
    add("--dry-run", action="store_true", help="print networks, pairs of taps, memory and run folder; write and start nothing")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--continue", dest="resume", action="store_true", help="continue an interrupted run")
    group.add_argument("--overwrite", action="store_true", help="throw away what an earlier run left in the fold folder")


def training_options(arguments: argparse.Namespace) -> TrainOptions:
    """The parsed options."""
    return TrainOptions(
        root=arguments.root,
        configuration=arguments.configuration,
        epochs=arguments.epochs,
        iterations_per_epoch=arguments.iterations_per_epoch,
        batch_size=arguments.batch_size,
        patch_size=tuple(arguments.patch_size) if arguments.patch_size else None,
        learning_rate=arguments.learning_rate,
        device=arguments.device,
        precision=arguments.precision,
        seed=arguments.seed,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        tag=arguments.tag,
        workers=arguments.workers,
        width_divisor=arguments.width_divisor,
        settings=parse_settings(getattr(arguments, "set", None) or []),
        save_every=arguments.save_every,
        validate=not arguments.no_validate,
    )


def parse_settings(pairs: list[str]) -> dict[str, str]:
    """``["kd.weight=2"]`` → ``{"kd.weight": "2"}``.

    Raises:
        MethodError: an entry is not of the form METHOD.PARAMETER=VALUE.
    """
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or "." not in key:
            raise MethodError(f"--set expects METHOD.PARAMETER=VALUE, for example kd.temperature=2, found '{pair}'.")
        settings[key] = value
    return settings
