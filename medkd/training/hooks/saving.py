"""Saving what a continued run needs, and the final weights."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from medkd.core.run import FINAL
from medkd.training.hooks.base import Hook

if TYPE_CHECKING:
    from medkd.training.logs import EpochRecord
    from medkd.training.trainer import Trainer

_SECONDS = 300.0  # a killed run loses at most about five minutes, however many epochs lie between checkpoints


class SaveLatest(Hook):
    """Writes the latest checkpoint every few epochs, after the last one, and at least every five minutes.

    Args:
        every: epochs.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._saved = time.monotonic()

    def before_train(self, trainer: Trainer) -> None:
        """Start the clock."""
        self._saved = time.monotonic()

    def after_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        """Save if it is time."""
        due = trainer.epoch % self._every == 0 or trainer.epoch == trainer.settings.budget.epochs
        if due or time.monotonic() - self._saved > _SECONDS:
            trainer.save_latest()

    def after_save(self, trainer: Trainer) -> None:
        """Start the clock anew."""
        self._saved = time.monotonic()


class SaveFinal(Hook):
    """Writes the final weights, by which everybody knows that the training is finished."""

    def after_train(self, trainer: Trainer) -> None:
        """Save them."""
        trainer.save_weights(FINAL)
