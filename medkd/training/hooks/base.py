"""What the loop tells its hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from medkd.training.logs import EpochRecord
    from medkd.training.trainer import Trainer


class Hook:
    """Something that happens beside the steps of a training; the loop knows nothing more about it.

    Hooks are called in the order in which the trainer has them. One that holds what a continued run needs (an average
    of the weights, say) gives it as :meth:`state` under its :attr:`name`; it is kept in the latest checkpoint.
    """

    name = ""
    """Under which the state stands in the checkpoint; hooks without a state have none."""

    def before_train(self, trainer: Trainer) -> None:
        """Once, after a continued run's state was loaded and before the first step."""

    def after_step(self, trainer: Trainer, terms: Mapping[str, Tensor], norms: Mapping[str, float]) -> None:
        """After each optimiser step, with the detached loss terms and, where measured, their gradients' norms."""

    def after_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        """After the validation of each epoch; ``trainer.epoch`` counts the finished ones."""

    def after_save(self, trainer: Trainer) -> None:
        """After the latest checkpoint was written."""

    def after_train(self, trainer: Trainer) -> None:
        """Once, after the last epoch."""

    def close(self) -> None:
        """At the end in any case, also after an error."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values that a continued run needs."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
