"""Watches whether a method's terms teach a YOLO detector, in the first epoch of its training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from medkd.core.features import Progress
from medkd.training.hooks.terms import MEASURED_STEPS, TermWatch, gradient_norms
from medkd.training.ranks import Ranks


class FirstEpoch:
    """Says once, after the first epoch, which terms of a method are 0 or have no gradient for the network.

    Args:
        network: that is trained.
        say: told what was found, a sentence per term.
        ranks: the processes that have a part of the gradients each.
    """

    def __init__(self, network: nn.Module, say: Callable[[str], None], ranks: Ranks | None = None) -> None:
        self._network = network
        self._say = say
        self._ranks = ranks or Ranks()
        self._watch = TermWatch()
        self._names: set[str] = set()

    def after_terms(self, terms: Mapping[str, Tensor], progress: Progress) -> None:
        """Measure the gradients of a step's terms, in the first steps; their graph is kept."""
        if progress.epoch > 0:
            return
        self._names |= terms.keys()
        if progress.step < MEASURED_STEPS:
            weights = [weight for weight in self._network.parameters() if weight.requires_grad]
            self._watch.note(gradient_norms(terms, weights, self._ranks.sum_all))

    def after_epoch(self, epoch: int, means: Mapping[str, float]) -> None:
        """Warn after the first one.

        Args:
            epoch: that has ended, from 0.
            means: name → mean of the term over the epoch.
        """
        if epoch == 0:
            for sentence in self._watch.findings(means, self._names):
                self._say(sentence)
