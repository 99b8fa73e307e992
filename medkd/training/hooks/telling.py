"""Telling a tracker of every epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medkd.training.hooks.base import Hook

if TYPE_CHECKING:
    from medkd.training.logs import EpochRecord
    from medkd.training.tracking import Tracking
    from medkd.training.trainer import Trainer


class TellTracker(Hook):
    """Shows the epochs in a tracker, after they were logged and saved.

    Args:
        tracking: of the fold.
    """

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking

    def after_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        """Tell of the epoch."""
        self._tracking.epoch(record)
