"""The progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm import tqdm

from medkd.training.hooks.base import Hook

if TYPE_CHECKING:
    from medkd.training.logs import EpochRecord
    from medkd.training.trainer import Trainer


class ProgressBar(Hook):
    """Shows steps and time left on a terminal; nothing where the output is redirected."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def before_train(self, trainer: Trainer) -> None:
        """Open the bar where the training stands."""
        budget = trainer.settings.budget
        steps = budget.iterations_per_epoch
        self._bar = tqdm(total=budget.epochs * steps, initial=trainer.epoch * steps, unit="step", disable=None)

    def after_step(self, trainer: Trainer, terms: Mapping[str, Tensor], norms: Mapping[str, float]) -> None:
        """One step further."""
        if self._bar is not None:
            self._bar.update()

    def after_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        """Show the epoch's loss."""
        if self._bar is not None:
            epochs = trainer.settings.budget.epochs
            self._bar.set_postfix_str(f"epoch {record.epoch + 1}/{epochs} loss {record.train_loss:.3f}")

    def close(self) -> None:
        """Leave the line."""
        if self._bar is not None:
            self._bar.close()
