"""The options that both training commands take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

from medkd.cli import common
from medkd.core.errors import MethodError
from medkd.core.precision import PRECISION_CHOICES
from medkd.tasks import every_task
from medkd.training.options import TRACKERS, TrainOptions

_DEFAULTS = TrainOptions()
_OTHERWISE = {"method_parameters", "validate"}  # which no option of the same name sets


Add = Callable[..., object]


def adding(parser: argparse._ActionsContainer, without: Collection[str]) -> Add:
    """``add_argument``, which passes over the options that a command does without, by their names in Python."""

    def add(*flags: str, **details: Any) -> None:
        name = details.get("dest") or flags[-1].lstrip("-").replace("-", "_")
        if name not in without:
            parser.add_argument(*flags, **details)

    return add


def add_training_options(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Add the options of all tasks, see :attr:`medkd.tasks.Task.training_options`.

    Args:
        parser: of a command that trains.
        without: options that it decides itself, by their names in Python; all others it must hand over.
    """
    add = adding(parser, without)
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
    add(
        "--mirror-axes",
        type=common.axis,
        nargs="+",
        metavar="AXIS",
        help="axes of the patch (0 is its first) that training and test-time augmentation mirror, or none (default: "
        "the plan's)",
    )
    add("--learning-rate", type=float, help="initial learning rate (default: 0.01, or the plan's)")
    add("--width-divisor", type=int, help="divide the channels of a planned network by this (default: 1)")
    _add_sources(add)
    add("--device", help="cuda, cpu or mps (default: cuda where present)")
    add(
        "--precision",
        choices=PRECISION_CHOICES,
        help="default: fp16 on cuda, fp32 elsewhere; bf16 is faster on recent CPUs, but not right there on very small "
        "feature maps, and slow on others; auto takes it where it is faster",
    )
    _add_speed(add)
    add("--seed", type=int, default=0, help="everything random follows from it (default: 0)")
    add("--workers", type=int, help="loader processes (default: from the cores; 0 loads in the training process)")
    add("--save-every", type=int, help="epochs between checkpoints (default: 10; at least every five minutes)")
    add("--tag", help="text added to the run's name, to keep runs with other settings apart")
    add(
        "--track",
        choices=TRACKERS,
        help="show settings, epochs and scores in Weights & Biases or MLflow; their own variables say where (default: "
        "nothing is sent)",
    )
    add(
        "--strict",
        action="store_true",
        help="refuse what is otherwise a warning: a teacher that finds nothing or was mirrored where the plan forbids "
        "it, structures that a fold does not show, terms of a method that cannot teach",
    )
    add("--no-validate", action="store_true", help="do not predict and score the validation cases at the end")
    add(
        "--dry-run",
        action="store_true",
        help="print networks, pairs of taps, memory and run folder; write and start nothing",
    )
    if not {"resume", "overwrite"} <= set(without):
        either = adding(parser.add_mutually_exclusive_group(), without)
        either("--continue", dest="resume", action="store_true", help="continue an interrupted run")
        either("--overwrite", action="store_true", help="throw away what an earlier run left in the fold folder")
    common.add_options_of_tasks(parser, "train")


def _add_speed(add: Add) -> None:
    """torch's own switches."""
    add(
        "--tf32",
        choices=("on", "off"),
        help="CUDA: fp32 products with ten bits of fraction (default: torch's, in convolutions only)",
    )
    add("--channels-last", action="store_true", help="channels are neighbours in memory, of images and weights")
    add("--cudnn-benchmark", action="store_true", help="CUDA: let cuDNN try its convolutions and take the fastest")
    add(
        "--compile",
        action="store_true",
        help="torch.compile the trained network (segmentation: for methods that need outputs only), or a detector's "
        "backbone and pyramid",
    )


def _add_sources(add: Add) -> None:
    """Where the first weights and the settings come from."""
    add(
        "--backbone-weights",
        type=Path,
        metavar="FILE",
        help="detection: start from these weights, for example of ImageNet",
    )
    add(
        "--protocol",
        metavar="NAME",
        help="train as this published protocol says, settings of the method included; --set and the other options win "
        "(default: the plan's protocol, if it has one; none for none)",
    )
    add(
        "--weights",
        metavar="imagenet|coco|PATH",
        help="start from these weights of the network, its encoder or its backbone; those of ImageNet and COCO come "
        "from their libraries' caches or are fetched (default: random weights)",
    )


def add_target_options(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Add what :class:`~medkd.training.options.TrainOptions` says of a teacher's targets and weights; ``without`` as
    for :func:`add_training_options`.
    """
    add = adding(parser, without)
    add(
        "--set",
        action="append",
        metavar="METHOD.PARAMETER=VALUE",
        help="override a method's parameter; may be repeated",
    )
    add(
        "--targets",
        choices=("live", "cached", "out-of-fold"),
        help="live: the teacher sees every patch; cached: it predicts each training case once, before training, for "
        "methods that need its outputs only; out-of-fold: for fold all, likewise, each case by those of the teacher's "
        f"folds that were not trained on it (default: {_DEFAULTS.targets})",
    )
    add("--targets-tta", action="store_true", default=None, help="cached targets are means over mirrored copies")
    add(
        "--init",
        choices=("random", "teacher"),
        help="teacher: a smaller plain_unet, resenc_unet_* or detector gets first weights that are fitted to its "
        f"teacher of the same kind (default: {_DEFAULTS.init})",
    )
    add(
        "--targets-limit",
        type=float,
        metavar="GIB",
        help=f"most disk space of cached targets (default: {_DEFAULTS.targets_limit:g})",
    )
    add(
        "--unlabelled-share",
        type=float,
        metavar="SHARE",
        help="share of the samples that are drawn from scans without labels, those in imagesUn (default: by number of "
        "cases; 0 leaves them out)",
    )
    add(
        "--labels",
        choices=("given", "none"),
        help=f"none: no label is looked at, all comes from the teacher (default: {_DEFAULTS.labels})",
    )
    add(
        "--teacher",
        dest="teachers",
        action="append",
        metavar="TEACHER",
        help="a further teacher, for structures that the first does not know or to average with it; needs --targets "
        "cached; may be repeated",
    )
    add(
        "--confidence",
        type=float,
        metavar="P",
        help="leave voxels where the teacher's largest probability is below P out of the method's terms (default: 0)",
    )


def known_settings() -> frozenset[str]:
    """The names in Python of what the trainings of all tasks can be told."""
    return frozenset(field.name for task in every_task() for field in fields(task.column("training_options")))


def training_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given for training, by the names of the tasks' :attr:`~medkd.tasks.Task.training_options`.

    Raises:
        MethodError: an entry of ``--set`` is not of the form METHOD.PARAMETER=VALUE.
    """
    settings = common.given(arguments, sorted(known_settings() - _OTHERWISE))
    if "mirror_axes" in settings:
        settings["mirror_axes"] = common.axes(settings["mirror_axes"])
    if "teachers" in settings:
        settings["teachers"] = tuple(settings["teachers"])
    if "patch_size" in settings:
        settings["patch_size"] = tuple(settings["patch_size"])
    parameters = parse_settings(getattr(arguments, "set", None) or [])
    if parameters:
        settings["method_parameters"] = parameters
    if getattr(arguments, "no_validate", False):
        settings["validate"] = False
    return settings


def parse_settings(pairs: list[str]) -> dict[str, str]:
    """``METHOD.PARAMETER=VALUE`` → value by ``METHOD.PARAMETER``.

    Raises:
        MethodError: an entry is not of this form.

    >>> parse_settings(["kd.weight=2"])
    {'kd.weight': '2'}
    """
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or "." not in key:
            raise MethodError(f"--set expects METHOD.PARAMETER=VALUE, for example kd.temperature=2, found '{pair}'.")
        settings[key] = value
    return settings
