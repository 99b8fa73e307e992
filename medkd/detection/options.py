"""What a user may set for the training of a detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medkd.core.limits import check_numbers

_LEAST = {"epochs": 1, "iterations_per_epoch": 1, "batch_size": 1, "image_size": 1, "seed": 0, "workers": 0}


@dataclass(frozen=True)
class DetectorOptions:
    """Options shared by training alone and distillation; None means the plan's own value.

    Attributes:
        root: medkd's root folder, see :class:`medkd.core.paths.Root`.
        epochs: epochs.
        iterations_per_epoch: optimiser steps per epoch; None is one pass over the images that the plan draws for an
            epoch.
        batch_size: images per step.
        image_size: side of the square input in pixels, a multiple of 32.
        learning_rate: initial learning rate.
        device: ``cuda``, ``cpu``, ``mps``, or None for CUDA where present, else the CPU.
        precision: ``fp32``, ``bf16``, ``fp16``, or None: fp16 on CUDA, else fp32.
        seed: everything random follows from it.
        resume: continue an interrupted run (a finished one is left as it is).
        overwrite: throw away what an earlier run left in the fold folder.
        tag: text added to the run's name, for runs that differ in settings which the name does not show.
        workers: loader processes; None follows from the cores, 0 loads in the training process.
        settings: ``method.parameter`` → value.
        backbone_weights: file of weights that the detector starts from, see :func:`medkd.detection.weights.start_from`.
        validate: find and score the boxes of the fold's validation images at the end.

    Raises:
        RunError: a number is outside of its limits.
    """

    root: Path | None = None
    epochs: int | None = None
    iterations_per_epoch: int | None = None
    batch_size: int | None = None
    image_size: int | None = None
    learning_rate: float | None = None
    device: str | None = None
    precision: str | None = None
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    tag: str | None = None
    workers: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    backbone_weights: Path | None = None
    validate: bool = True

    def __post_init__(self) -> None:
        check_numbers(self, _LEAST, ("learning_rate",))
