"""Reads feature maps and block corrections out of a network during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from medkd.core.errors import MethodError
from medkd.core.features import Tap
from medkd.core.serial import nearest


class Capture:
    """Records the outputs of a network's taps while it is entered.

    ``with Capture(network, ("dec1",)) as capture: network(x)`` leaves ``capture.features["dec1"]``. The hooks exist
    only inside the ``with`` block, and entering it again forgets the previous forward pass. Every captured tensor is a
    copy, because the next layer may work in place (``ReLU(inplace=True)``, ``x += skip``) and would change what was
    recorded.

    The correction of a block is its output minus its input, the input copied before the block runs; for an additive
    block this is the residual branch, however the block adds.

    Args:
        network: any module with ``taps``.
        taps: names of the taps whose feature maps are wanted.
        corrections: names of the taps whose block correction is wanted.
        detach: cut the recorded tensors from the graph (for teachers).

    Raises:
        MethodError: the network has no such tap, its module does not exist, or the tap's block has no correction.
    """

    def __init__(
        self, network: nn.Module, taps: Sequence[str] = (), corrections: Sequence[str] = (), *, detach: bool = False
    ) -> None:
        self._features = {name: _module(network, _tap(network, name)) for name in taps}
        self._corrections = {name: _module(network, _tap(network, name, correction=True)) for name in corrections}
        self._detach = detach
        self._handles: list[RemovableHandle] = []
        self._inputs: dict[str, Tensor] = {}
        self.features: dict[str, Tensor] = {}
        self.corrections: dict[str, Tensor] = {}

    def __enter__(self) -> Capture:
        self._remove()
        self.clear()
        for name, module in self._features.items():
            self._handles.append(module.register_forward_hook(self._feature_hook(name)))
        for name, module in self._corrections.items():
            self._handles.append(module.register_forward_pre_hook(self._input_hook(name)))
            self._handles.append(module.register_forward_hook(self._correction_hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()
        self._inputs.clear()

    def clear(self) -> None:
        """Forget what was recorded, so that the graph of a finished step is freed."""
        self.features = {}
        self.corrections = {}
        self._inputs.clear()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _take(self, tensor: Any, name: str) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise MethodError(
                f"Tap '{name}' must point at a module that returns one tensor, found {type(tensor).__name__}."
            )
        return tensor.detach() if self._detach else tensor

    def _feature_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.features[name] = self._take(output, name).clone()

        return hook

    def _input_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._inputs[name] = self._take(args[0], name).clone()

        return hook

    def _correction_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            before, after = self._inputs.pop(name), self._take(output, name)
            if before.shape != after.shape:
                raise MethodError(
                    f"The block of tap '{name}' turns {tuple(before.shape)} into {tuple(after.shape)}, so it has no "
                    "correction; "
                    "choose a tap whose block keeps its shape."
                )
            self.corrections[name] = after - before

        return hook


def _tap(network: nn.Module, name: str, correction: bool = False) -> Tap:
    taps: dict[str, Tap] = {tap.name: tap for tap in getattr(network, "taps", ())}
    kind = type(network).__name__
    if name not in taps:
        raise MethodError(f"{kind} has no tap '{name}'.{nearest(name, taps)} Its taps: {', '.join(taps) or 'none'}.")
    if correction and not taps[name].correction:
        offered = [tap.name for tap in taps.values() if tap.correction]
        raise MethodError(
            f"Tap '{name}' of {kind} has no block correction; taps that have one: {', '.join(offered) or 'none'}."
        )
    return taps[name]


def _module(network: nn.Module, tap: Tap) -> nn.Module:
    try:
        return network.get_submodule(tap.module)
    except AttributeError as error:
        raise MethodError(
            f"Tap '{tap.name}' of {type(network).__name__} points at '{tap.module}', which is not a module of it."
        ) from error
