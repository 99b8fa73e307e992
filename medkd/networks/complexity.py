"""What a network costs: parameters, multiply-adds, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(network: nn.Module) -> int:
    """Parameters, frozen or not; a tensor that is registered under several names counts once."""
    # on "meta" there is no memory to tell tensors apart by; there the parameter objects themselves are distinct
    unique = {id(p) if p.is_meta else p.data_ptr(): p.numel() for p in network.parameters()}
    return sum(unique.values())


def count_macs(network: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-adds of convolutions and matrix products in one forward pass in eval mode.

    Args:
        network: on any device; on ``meta`` nothing is computed, so that large networks are counted at once.
        shape: of the input, ``(B, C, *spatial)``.

    Returns:
        Half of the floating point operations that ``torch.utils.flop_counter`` counts.
    """
    image = torch.zeros(tuple(shape), device=_device(network))
    with _evaluating(network), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops() // 2


def latency_ms(
    network: nn.Module, shape: Sequence[int], device: torch.device | str = "cpu", repeats: int = 10
) -> float:
    """Median time of a forward pass in eval mode, in milliseconds, after two passes to warm up.

    Args:
        network: is moved to ``device`` and back.
        shape: of the input, ``(B, C, *spatial)``.
        device: where to measure; CUDA is synchronised around every pass.
        repeats: timed passes.
    """
    device, home = torch.device(device), _device(network)
    network.to(device)
    image = torch.zeros(tuple(shape), device=device)
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    with _evaluating(network):
        for _ in range(repeats + 2):
            wait()
            start = time.perf_counter()
            network(image)
            wait()
            seconds.append(time.perf_counter() - start)
    network.to(home)
    return 1000 * median(seconds[2:])


def _device(network: nn.Module) -> torch.device:
    return next((p.device for p in network.parameters()), torch.device("cpu"))


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode without gradient; the mode of before is restored."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)
