"""What a family needs to train a detector: everything about one fold of one run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medkd.core.run import Budget
from medkd.core.speed import USUAL, Speed
from medkd.detection.base import Detector
from medkd.detection.plan import DetectionPlan

if TYPE_CHECKING:
    from medkd.detection.distiller import DetectorDistiller
    from medkd.training.logs import EpochRecord
    from medkd.training.tracking import Tracking


@dataclass(frozen=True, kw_only=True)
class DetectionJob:
    """One fold of one run.

    Attributes:
        detector: what is trained.
        distiller: teacher and method, or None.
        plan: of the data set.
        store: folder of a :class:`~medkd.detection.store.DetectionStore`.
        train: case ids in the order of the split; sampling by the plan is the family's to apply.
        val: case ids.
        unlabelled: images without annotation, or whose annotation is not looked at; none of them is among ``train``.
        unlabelled_share: of the steps, which show them.
        budget: ``epochs`` and ``iterations_per_epoch`` (0: one pass over the drawn training images), batch size,
            learning rate, seed.
        folder: fold folder; the family writes its checkpoints and ``log.jsonl`` there.
        device: where to train.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        speed: torch's switches.
        resume: continue from what is in the folder.
        workers: loader processes.
        tracking: what is told of the epochs; None where nobody is.
    """

    detector: Detector
    distiller: DetectorDistiller | None
    plan: DetectionPlan
    store: Path
    train: tuple[str, ...]
    val: tuple[str, ...]
    budget: Budget
    folder: Path
    device: torch.device
    precision: str = "fp32"
    speed: Speed = USUAL
    resume: bool = False
    workers: int = 0
    unlabelled: tuple[str, ...] = ()
    unlabelled_share: float = 0.0
    tracking: Tracking | None = None

    @cached_property
    def without_annotation(self) -> frozenset[str]:
        """The images of :attr:`unlabelled`."""
        return frozenset(self.unlabelled)

    def tell(self, record: EpochRecord) -> None:
        """Tell a tracker of an epoch, where one is told."""
        if self.tracking is not None:
            self.tracking.epoch(record)
