"""What a user may set for training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medkd.core.errors import RunError
from medkd.core.limits import check_numbers, is_whole

_LEAST = {
    "epochs": 1,
    "iterations_per_epoch": 1,
    "batch_size": 1,
    "seed": 0,
    "workers": 0,
    "width_divisor": 1,
    "save_every": 1,
}


@dataclass(frozen=True)
class TrainOptions:
    """Options shared by training alone and distillation; None means the plan's or the recipe's own value.

    Attributes:
        root: medkd's root folder, see :class:`medkd.core.paths.Root`.
        configuration: ``2d``, ``3d_fullres`` or ``3d_lowres``.
        epochs: epochs; None is the plan's protocol's number, else 1000 as in nnU-Net.
        iterations_per_epoch: optimiser steps per epoch; None is the plan's protocol's number, else 250 as in nnU-Net.
        batch_size: patches per step.
        patch_size: voxels per axis.
        learning_rate: initial learning rate of the poly schedule.
        device: ``cuda``, ``cpu``, ``mps``, or None for the best that is present.
        precision: ``fp32``, ``bf16``, ``fp16``, or None: fp16 on CUDA, else fp32.
        seed: everything random follows from it.
        resume: continue an interrupted run (a finished one is left as it is).
        overwrite: throw away what an earlier run left in the fold folder.
        tag: text added to the run's name, for runs that differ in settings which the name does not show.
        workers: loader processes; None follows from the cores, 0 loads in the training process.
        width_divisor: divides the channels of a planned network.
        settings: ``method.parameter`` → value.
        save_every: epochs between latest checkpoints.
        validate: predict and score the fold's validation cases at the end.
        targets: ``live``: the teacher sees every augmented patch; ``cached``: it predicts every training case once,
            before training.
        targets_tta: cached targets are means over mirrored copies.
        targets_limit: GiB that the cached targets of a run's cases may take on disk.
        init: what a student's weights are before the first step: ``random``, or ``teacher``, see
            :mod:`medkd.networks.inheritance`.

    Raises:
        RunError: a number is outside of its limits.
    """

    root: Path | None = None
    configuration: str = "3d_fullres"
    epochs: int | None = None
    iterations_per_epoch: int | None = None
    batch_size: int | None = None
    patch_size: tuple[int, ...] | None = None
    learning_rate: float | None = None
    device: str | None = None
    precision: str | None = None
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    tag: str | None = None
    workers: int | None = None
    width_divisor: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    save_every: int = 10
    validate: bool = True
    targets: str = "live"
    targets_tta: bool = False
    targets_limit: float = 50.0
    init: str = "random"

    def __post_init__(self) -> None:
        check_numbers(self, _LEAST, ("learning_rate", "targets_limit"))
        patch = self.patch_size
        if patch is not None and not (
            isinstance(patch, (tuple, list)) and patch and all(is_whole(side, 1) for side in patch)
        ):
            raise RunError(
                f"--patch-size expects whole numbers of at least 1, one per axis, found {patch!r}; leave it out for "
                "the default."
            )
