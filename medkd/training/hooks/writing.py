"""The logs of a fold as a hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medkd.training.hooks.base import Hook
from medkd.training.logs import RunLog

if TYPE_CHECKING:
    from medkd.training.logs import EpochRecord
    from medkd.training.trainer import Trainer


class WriteLog(Hook):
    """Writes ``log.jsonl``, the text log, TensorBoard and ``progress.png``.

    Attributes:
        label: stands before what is said to the user; set before the training starts.
    """

    def __init__(self) -> None:
        self.label = ""
        self._log: RunLog | None = None

    def before_train(self, trainer: Trainer) -> None:
        """Open the logs; epochs that are going to be repeated are dropped."""
        self._log = RunLog(trainer.folder, trainer.epoch, self.label)

    def after_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        """Append the epoch."""
        if self._log is not None:
            self._log.add(record)

    def after_save(self, trainer: Trainer) -> None:
        """Draw the curves."""
        if self._log is not None:
            self._log.draw_meanwhile()

    def say(self, text: str, *, warning: bool = False) -> None:
        """Write a line to the text log and to the user."""
        if self._log is not None:
            self._log.say(text, warning=warning)

    def close(self) -> None:
        """Flush the logs."""
        if self._log is not None:
            self._log.close()
            self._log = None
