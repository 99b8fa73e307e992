"""What a user may set for the training of a detector, beyond what every task has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from medkd.training.options import RunOptions


@dataclass(frozen=True, kw_only=True)
class DetectorOptions(RunOptions):
    """Options of detectors; without ``iterations_per_epoch`` an epoch is one pass over the images that the plan draws.

    Attributes:
        image_size: side of the square input in pixels, a multiple of 32.
        backbone_weights: file of weights that the detector starts from, see :func:`medkd.detection.weights.start_from`.

    Raises:
        RunError: a number is outside of its limits.
    """

    image_size: int | None = None
    backbone_weights: Path | None = None

    whole_numbers: ClassVar[Mapping[str, int]] = {**RunOptions.whole_numbers, "image_size": 1}
