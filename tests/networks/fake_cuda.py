"""A CUDA device without a GPU: torch's fake tensors have shapes, types and devices, but no values.

An operator that mixes devices, that only exists on the CPU, or that asks for a value fails under them, so that a run on
fake tensors shows what would stop or stall a training on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_VALUES = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero"}
_SIZES = {
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::repeat_interleave.Tensor",
}


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Tensors that are made in here are fake; a real one that meets them is an error."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        yield


def to_fake_cuda(module: nn.Module) -> nn.Module:
    """Put fake CUDA tensors in the place of all parameters and buffers, in place; call it under :func:`fake_cuda`."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                fake = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                part._parameters[name] = nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    return module


def backward(loss: Tensor) -> None:
    """As ``loss.backward()``, node by node from here: torch's own engine wants a CUDA context, which only a GPU has."""
    waiting: dict[Any, list[Tensor | None]] = {loss.grad_fn: [torch.ones_like(loss)]}
    for node in _in_order(loss.grad_fn):
        given = waiting.pop(node, None)
        if given is None:
            continue
        if hasattr(node, "variable"):
            assert given[0] is not None and given[0].device == node.variable.device, node
            node.variable.grad = given[0]
            continue
        found = node(*given)
        found = found if isinstance(found, tuple) else (found,)
        for (follower, place), grad in zip(node.next_functions, found, strict=False):
            if follower is not None and grad is not None:
                _add(waiting, follower, place, grad)


def _add(waiting: dict[Any, list[Tensor | None]], node: Any, place: int, grad: Tensor) -> None:
    """Note a gradient for one of the outputs of a node."""
    wanted = node._input_metadata
    outputs = waiting.setdefault(node, [None] * len(wanted))
    shape = torch.Size(wanted[place].shape)
    if grad.shape != shape:
        grad = grad.sum_to_size(shape)
    before = outputs[place]
    outputs[place] = grad if before is None else before + grad


def _in_order(first: Any) -> list[Any]:
    """The nodes below one, each before those that it hands gradients to."""
    done, order, stack = set(), [], [(first, False)]
    while stack:
        node, finished = stack.pop()
        if finished:
            order.append(node)
        elif node not in done:
            done.add(node)
            stack.append((node, True))
            stack.extend((below, False) for below, _ in node.next_functions if below is not None)
    return order[::-1]


class CountSyncs(TorchDispatchMode):
    """Counts the operators for which a host would wait for its GPU: those that give values or sizes to Python, and
    copies between the two.

    It works on real CPU tensors, too, so that losses whose shapes depend on values can be counted.

    Attributes:
        found: name of the operator → how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.found.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name in _VALUES | _SIZES or _bool_index(name, args):
            self.found[name] = self.found.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def _bool_index(name: str, args: Any) -> bool:
    """Whether an index is a mask, whose number of places only the device knows."""
    if not name.startswith(("aten::index.Tensor", "aten::index_put", "aten::_index_put_impl_")):
        return False
    masks = [i for i in args[1] if isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)]
    writes_number = name != "aten::index.Tensor" and isinstance(args[2], Tensor) and args[2].numel() == 1
    return bool(masks) and not writes_number
