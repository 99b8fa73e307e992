"""Warning of loss terms that teach nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medkd.training.hooks.base import Hook

if TYPE_CHECKING:
    from medkd.training.logs import EpochRecord
    from medkd.training.trainer import Trainer

MEASURED_STEPS = 3
"""First steps of a training whose gradients are measured; after the first one, helpers that begin at 0 have moved."""

_SHOWN_AS_ZERO = 5e-5  # a log says 0.0000


def gradient_norms(
    terms: Mapping[str, Tensor],
    weights: Sequence[Tensor],
    complete: Callable[[Sequence[Tensor]], None] | None = None,
) -> dict[str, float]:
    """How hard each term pulls at the weights: terms of very different norm are badly scaled, one of 0 teaches nothing.

    The terms' graph is kept. ``complete`` changes a term's gradients in place before they are measured: to their sum,
    where other processes have parts of them.
    """
    norms = {}
    for name, term in terms.items():
        if not term.requires_grad:
            norms[name] = 0.0
            continue
        gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        found = [gradient for gradient in gradients if gradient is not None]
        if complete is not None:
            complete(found)
        squares = [gradient.float().square().sum() for gradient in found]
        norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    return norms


class TermWatch:
    """Finds terms that are 0, or whose gradient is, over the first epoch of a training."""

    def __init__(self) -> None:
        self._gradients: dict[str, float] = {}

    def note(self, norms: Mapping[str, float]) -> None:
        """Take note of the gradients' norms of one step."""
        for name, norm in norms.items():
            self._gradients[name] = max(norm, self._gradients.get(name, 0.0))

    def findings(self, means: Mapping[str, float], method_terms: Collection[str]) -> list[str]:
        """One sentence per term of the method that does nothing.

        Args:
            means: name → mean of the term over the epoch.
            method_terms: the terms that a method added.
        """
        found = []
        for name in sorted(method_terms & means.keys()):
            gradient = self._gradients.get(name)
            if abs(means[name]) < _SHOWN_AS_ZERO:
                found.append(_sentence(name, f"was {means[name]:.1g} on average in the first epoch"))
            elif gradient == 0:
                found.append(_sentence(name, f"had no gradient for the student in the first {MEASURED_STEPS} steps"))
        return found


def _sentence(name: str, what: str) -> str:
    return f"The loss term '{name}' {what}, so it teaches nothing; look at the teacher's scores and the term's weight."


class WatchTerms(Hook):
    """Warns once, after the first epoch, of terms of the method that do nothing.

    Args:
        say: told what was found.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._watch = TermWatch()

    def after_step(self, trainer: Trainer, terms: Mapping[str, Tensor], norms: Mapping[str, float]) -> None:
        """Take note of the gradients."""
        if trainer.epoch == 0:
            self._watch.note(norms)

    def after_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        """Warn after the first epoch."""
        if record.epoch == 0:
            for sentence in self._watch.findings(record.terms, trainer.method_terms):
                self._say(sentence)
