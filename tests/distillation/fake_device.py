"""A GPU that is not there: a method's loss on fake tensors of device ``cuda``, which have shapes and no values.

What needs a value stops there (``.item()``, ``bool(tensor)``, ``nonzero``), and so does an operation between tensors of
different devices. Every operation is recorded. Gradients are not computed: without a driver autograd does not start on
that device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from medkd.core.features import Outputs, Target
from medkd.distillation import Method
from medkd.distillation.boundaries import distance
from medkd.distillation.gradient_check import random_outputs

DEVICE = "cuda"
_GENERATOR = torch.Generator


class Operations(TorchDispatchMode):
    """Records what is started on the device, and what is copied between host and device.

    Attributes:
        launches: names of operations that are not mere views.
        copies: names of those that move data between devices.
        questions: how often the host waits for an answer (see :func:`fake_device`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []
        self.copies: list[str] = []
        self.questions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if str(func).startswith("aten.") and not func.is_view:
            self.launches.append(str(func))
        given = {a.device.type for a in args if isinstance(a, Tensor)}
        found = {result.device.type} if isinstance(result, Tensor) else set()
        if str(func).startswith(("aten._to_copy", "aten.copy_")) and len(given | found) > 1:
            self.copies.append(str(func))
        return result


@contextmanager
def fake_device() -> Iterator[Operations]:
    """Fake tensors, with the operations on them; the one question that a step may ask is answered by "all of them"."""
    operations = Operations()

    def all_of_them(masks: Tensor) -> Tensor:
        operations.questions += 1
        return torch.arange(len(masks), device=masks.device)

    with (
        FakeTensorMode(),
        mock.patch.object(distance, "mixed_masks", all_of_them),
        mock.patch.object(torch, "Generator", lambda device="cpu": _GENERATOR()),
        operations,
    ):
        yield operations


def loss_on_fake_device(method: Method, batch: int = 2, valid: bool = False) -> tuple[dict[str, Tensor], Operations]:
    """The terms of one step, as fake tensors, and what it did."""
    student, teacher, target = random_outputs(method, batch)
    moved = copy.deepcopy(method)
    if hasattr(moved, "prepared"):
        moved.prepared.fill_(True)
        moved.load_state_dict(moved.state_dict())
    with fake_device() as operations:
        _move(moved)
        ours, theirs = _outputs(student, True), _outputs(teacher, False)
        if teacher.forward_from is not None:
            theirs = replace(theirs, forward_from=lambda tap, feature: _rest(feature, teacher.logits))
        labels = _like(target.labels)
        mask = torch.empty(labels[:, :1].shape, dtype=torch.bool, device=DEVICE) if valid else None
        operations.launches.clear()
        operations.copies.clear()
        terms = moved(ours, theirs, Target(labels, mask, target.progress))
    return terms, operations


def _rest(feature: Tensor, logits: Tensor) -> Tensor:
    """Something of the logits' shape that hangs on the feature."""
    return torch.empty(logits.shape, device=DEVICE) * feature.mean()


def _like(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device=DEVICE)


def _outputs(outputs: Outputs, gradient: bool) -> Outputs:
    def moved(values: Any) -> dict[str, Tensor]:
        return {name: _like(value).requires_grad_(gradient) for name, value in values.items()}

    return Outputs(
        logits=_like(outputs.logits).requires_grad_(gradient),
        features=moved(outputs.features),
        corrections=moved(outputs.corrections),
        average=None if outputs.average is None else _like(outputs.average),
    )


def _move(method: Method) -> None:
    for module in method.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_like(parameter))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _like(buffer)
