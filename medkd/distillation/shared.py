"""One teacher for several distillers: a batch of images goes through it once."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from medkd.core.features import Outputs
from medkd.distillation.base import Method, Needs
from medkd.distillation.capture import Capture
from medkd.distillation.distiller import Distiller, outputs_of


class SharedTeacher:
    """A frozen teacher, with what it said of the current batch.

    Args:
        network: the teacher.

    Attributes:
        network: in evaluation mode.
        seconds: that its passes took so far, those that only one distiller wants left out.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)
        self.seconds = 0.0
        self._needs = Needs()
        self._continued = False
        self._outputs: Outputs | None = None

    def join(self, method: Method) -> None:
        """A further method asks for what it needs."""
        self._needs = self._needs | method.needs()
        self._continued = self._continued or method.continues_teacher

    def forget(self) -> None:
        """The next batch is another one."""
        self._outputs = None

    def disturbed(self) -> None:
        """Somebody sent other images through the network, which may remember its last pass."""
        if self._continued:
            self.forget()

    def look(self, image: Tensor) -> Outputs:
        """All that any of the methods needs of this batch; computed once until :meth:`forget`."""
        if self._outputs is None:
            begun = time.perf_counter()
            self.network.eval()
            capture = Capture(self.network, self._needs.teacher, self._needs.teacher_corrections, detach=True)
            with torch.no_grad(), capture:
                logits = self.network(image.detach())
            self._outputs = outputs_of(logits, capture.features, capture.corrections, None)
            self.seconds += time.perf_counter() - begun
        return self._outputs


class SharedDistiller(Distiller):
    """A distiller whose teacher others look at, too.

    Args:
        shared: the teacher.
        method: as for :class:`~medkd.distillation.distiller.Distiller`.
        more: likewise.
    """

    def __init__(self, shared: SharedTeacher, method: Method, **more: Any) -> None:
        super().__init__(shared.network, method, **more)
        self._shared = shared
        if self.teacher is not None:
            shared.join(method)

    def plain_pass(self, image: Tensor) -> Outputs:
        """What the method asked for of what the teacher said of this batch."""
        seen, needs = self._shared.look(image), self.method.needs()
        return Outputs(
            logits=seen.logits,
            features={name: seen.features[name] for name in needs.teacher},
            corrections={name: seen.corrections[name] for name in needs.teacher_corrections},
            auxiliary=seen.auxiliary,
            forward_from=self.forward_from(image.device.type),
        )

    def other_probabilities(self, image: Tensor) -> Tensor:
        """The means over mirrorings and partners are this distiller's own."""
        found = super().other_probabilities(image)
        self._shared.disturbed()
        return found
