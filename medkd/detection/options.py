"""What a user may set for the training of a detector, beyond what every task has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from medkd.core.errors import RunError
from medkd.training.options import RunOptions, TaughtOptions, check_choice


@dataclass(frozen=True, kw_only=True)
class DetectorOptions(TaughtOptions):
    """Options of detectors; without ``iterations_per_epoch`` an epoch is one pass over the images that the plan draws.

    Attributes:
        image_size: side of the square input in pixels, a multiple of 32.
        backbone_weights: file of weights that the detector starts from, see :func:`medkd.detection.weights.start_from`.
        init: what a student's weights are before the first step: ``random``, or ``teacher``, see
            :mod:`medkd.detection.inheritance`.

    Raises:
        RunError: a number is outside of its limits.
    """

    image_size: int | None = None
    backbone_weights: Path | None = None
    init: Literal["random", "teacher"] = "random"

    whole_numbers: ClassVar[Mapping[str, int]] = {**RunOptions.whole_numbers, "image_size": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("--init", self.init, ("random", "teacher"))
        if self.weights is not None and self.backbone_weights is not None:
            raise RunError("Expected --weights or --backbone-weights, found both; leave one of them out.")
        named = "--weights" if self.weights is not None else "--backbone-weights"
        if self.init == "teacher" and (self.weights or self.backbone_weights) is not None:
            raise RunError(
                f"--init teacher gives a student all of its first weights, and {named} names others; leave one of them "
                "out."
            )
