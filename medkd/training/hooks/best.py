"""Keeping the weights of the best epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from medkd.core.run import BEST
from medkd.training.hooks.base import Hook

if TYPE_CHECKING:
    from medkd.training.logs import EpochRecord
    from medkd.training.trainer import Trainer


class KeepBest(Hook):
    """Saves the weights of the epoch with the highest validation score.

    Args:
        say: told of a new best score; one of 0 is no news.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def after_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        """Save the weights if no epoch before had such a score."""
        score, best = record.score, trainer.best_score
        if score is None or (best is not None and score <= best):
            return
        trainer.best_score = score
        trainer.save_weights(BEST)
        if score > 0:
            self._say(f"new best validation {trainer.score_name} {score:.4f}")
