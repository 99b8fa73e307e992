"""Looking into a planned U-Net while it runs: what goes into its modules and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from medkd.networks.planned import PlannedUNet


def run_all_layers(network: PlannedUNet, image: Tensor) -> None:
    """A forward pass through all layers, the heads of the coarse resolutions included."""
    features = network.encode(image)
    x = features[-1]
    for index in range(network.steps):
        x = network.step(index, x, features)
        network.head(index, x)


@contextmanager
def hooked(network: PlannedUNet, hooks: Mapping[str, Callable[..., None]], *, before: bool = False) -> Iterator[None]:
    """Call ``hook(input or output of the module)`` while the block runs."""
    handles = []
    for path, hook in hooks.items():
        module = network.net.get_submodule(path)
        if before:
            handles.append(module.register_forward_pre_hook(_on_input(hook)))
        else:
            handles.append(module.register_forward_hook(_on_output(hook)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_input(hook: Callable[..., None]) -> Callable[..., None]:
    return lambda module, given: hook(given[0])


def _on_output(hook: Callable[..., None]) -> Callable[..., None]:
    return lambda module, given, output: hook(output)
