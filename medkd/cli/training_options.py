"""The options that both training commands take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkd.core.dataset import dataset_task
from medkd.core.errors import MethodError, PlanError
from medkd.core.paths import Root
from medkd.training.options import TrainOptions

if TYPE_CHECKING:
    from medkd.detection.options import DetectorOptions

_DEFAULTS = TrainOptions()
_SEGMENTATION_ONLY = (
    "configuration",
    "patch_size",
    "width_divisor",
    "save_every",
    "targets",
    "targets_tta",
    "targets_limit",
    "init",
)
_DETECTION_ONLY = ("image_size", "backbone_weights")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of both tasks (:class:`~medkd.training.options.TrainOptions`,
    :class:`~medkd.detection.options.DetectorOptions`).
    """
    add = parser.add_argument
    add("-c", "--configuration", help=f"2d, 3d_fullres or 3d_lowres (default: {_DEFAULTS.configuration})")
    add("--epochs", type=int, help="epochs (default: 1000, or the plan's protocol's; detection: the plan's)")
    add(
        "--iterations-per-epoch",
        type=int,
        help="optimiser steps per epoch (default: 250, or the plan's protocol's; detection: one pass)",
    )
    add("--batch-size", type=int, help="patches or images per step (default: the plan's)")
    add("--patch-size", type=int, nargs="+", help="voxels per axis, for example 64 96 96 (default: the plan's)")
    add("--image-size", type=int, help="detection: side of the input, a multiple of 32 (default: the plan's)")
    add("--learning-rate", type=float, help="initial learning rate (default: 0.01, or the plan's)")
    add("--width-divisor", type=int, help="divide the channels of a planned network by this (default: 1)")
    add(
        "--backbone-weights",
        type=Path,
        metavar="FILE",
        help="detection: start from these weights, for example of ImageNet",
    )
    add("--device", help="cuda, cpu or mps (default: cuda where present)")
    add(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="default: fp16 on cuda, fp32 elsewhere; bf16 is faster on recent CPUs, but not right there on very small feature maps",
    )
    add("--seed", type=int, default=0, help="everything random follows from it (default: 0)")
    add("--workers", type=int, help="loader processes (default: from the cores; 0 loads in the training process)")
    add("--save-every", type=int, help="epochs between checkpoints (default: 10; at least every five minutes)")
    add("--tag", help="text added to the run's name, to keep runs with other settings apart")
    add("--no-validate", action="store_true", help="do not predict and score the validation cases at the end")
    add(
        "--dry-run",
        action="store_true",
        help="print networks, pairs of taps, memory and run folder; write and start nothing",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--continue", dest="resume", action="store_true", help="continue an interrupted run")
    group.add_argument(
        "--overwrite", action="store_true", help="throw away what an earlier run left in the fold folder"
    )


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Add what :class:`~medkd.training.options.TrainOptions` says of a teacher's targets and weights."""
    add = parser.add_argument
    add(
        "--targets",
        choices=("live", "cached"),
        help="live: the teacher sees every patch; cached: it predicts each training case once, before training, for methods that need its "
        f"outputs only (default: {_DEFAULTS.targets})",
    )
    add("--targets-tta", action="store_true", default=None, help="cached targets are means over mirrored copies")
    add(
        "--init",
        choices=("random", "teacher"),
        help="teacher: a narrower plain_unet or resenc_unet_* gets first weights that are fitted to its teacher of the same kind "
        f"(default: {_DEFAULTS.init})",
    )
    add(
        "--targets-limit",
        type=float,
        metavar="GIB",
        help=f"most disk space of cached targets (default: {_DEFAULTS.targets_limit:g})",
    )


def is_detection(arguments: argparse.Namespace) -> bool:
    """Whether the data set holds boxes; options of the other task are refused, not silently ignored.

    Raises:
        PlanError: an option does not belong to this task.
    """
    detection = dataset_task(Root.resolve(arguments.root), arguments.dataset) == "detection"
    for name in _SEGMENTATION_ONLY if detection else _DETECTION_ONLY:
        if getattr(arguments, name, None) is not None:
            kind = "detection" if detection else "segmentation"
            raise PlanError(
                f"{arguments.dataset} is a data set for {kind}, which --{name.replace('_', '-')} is not for; leave it "
                "out."
            )
    return detection


def training_options(arguments: argparse.Namespace) -> TrainOptions:
    """The parsed options for segmentation; what was not given keeps its default.

    Raises:
        RunError: a number is outside of its limits.
    """
    given = {name: value for name in _SEGMENTATION_ONLY if (value := getattr(arguments, name, None)) is not None}
    if "patch_size" in given:
        given["patch_size"] = tuple(given["patch_size"])
    return TrainOptions(**_common(arguments), **given)


def detector_options(arguments: argparse.Namespace) -> DetectorOptions:
    """The parsed options for detection.

    Raises:
        RunError: a number is outside of its limits.
    """
    from medkd.detection.options import DetectorOptions

    return DetectorOptions(
        **_common(arguments), image_size=arguments.image_size, backbone_weights=arguments.backbone_weights
    )


def _common(arguments: argparse.Namespace) -> dict[str, Any]:
    """What both tasks know."""
    names = (
        "root",
        "epochs",
        "iterations_per_epoch",
        "batch_size",
        "learning_rate",
        "device",
        "precision",
        "seed",
        "resume",
        "overwrite",
    )
    values = {name: getattr(arguments, name) for name in (*names, "tag", "workers")}
    return {
        **values,
        "method_parameters": parse_settings(getattr(arguments, "set", None) or []),
        "validate": not arguments.no_validate,
    }


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
