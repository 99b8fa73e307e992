"""Patches that are too small for a network: a norm over a single voxel has nothing to normalise, a pooling no room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from math import prod

import torch
from torch.func import functional_call

from medkd.core.errors import RunError
from medkd.core.run import NetworkSpec
from medkd.networks.base import SegmentationNetwork

_CELLS = 8  # a patch of so many of the deepest cells, one cell thin, is tried out; larger ones are not


def check_patch(network: SegmentationNetwork, build: Callable[[NetworkSpec], SegmentationNetwork]) -> None:
    """Refuse a network whose patch leaves too little at its bottleneck to train.

    The network itself is run once on two empty patches, so that nothing need be known of its layers. Patches that are
    large beside the deepest tap are not tried.

    Args:
        network: as it was built.
        build: builds it, to find the smallest patch that works.

    Raises:
        RunError: it cannot be trained on its patch, but can on a larger one.
    """
    spec = network.spec
    steps = _deepest(network)
    thin = any(size <= step for size, step in zip(spec.patch_size, steps, strict=True))
    if not thin or prod(spec.patch_size) > _CELLS * prod(steps):
        return
    problem = _problem(network)
    if problem is None:
        return
    for works in _larger(spec.patch_size, steps):
        if _builds(build, spec, works):
            raise RunError(
                f"'{spec.name}' cannot be trained on patches of {_text(spec.patch_size)}, of which too little is left "
                f"at its bottleneck ({problem}); the smallest larger patch that works is {_text(works)} (--patch-size)."
            )


def _deepest(network: SegmentationNetwork) -> tuple[int, ...]:
    """The largest stride of its taps per axis; without taps its patch."""
    strides = [tap.stride for tap in network.taps]
    if not strides:
        return network.spec.patch_size
    return tuple(map(max, zip(*strides, strict=True)))


def _larger(patch: tuple[int, ...], steps: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Patches with one axis more, then with several, up to twice the size everywhere; the smallest first."""
    larger = [(size, size + step) for size, step in zip(patch, steps, strict=True)]
    choices = product((0, 1), repeat=len(patch))
    for choice in sorted(choices, key=lambda more: (sum(more), more))[1:]:
        yield tuple(sizes[more] for sizes, more in zip(larger, choice, strict=True))


def _builds(build: Callable[[NetworkSpec], SegmentationNetwork], spec: NetworkSpec, patch: tuple[int, ...]) -> bool:
    """Whether the network can be trained on this patch."""
    with torch.random.fork_rng(devices=[]):
        return _problem(build(replace(spec, patch_size=patch))) is None


def _problem(network: SegmentationNetwork) -> str | None:
    """What a layer says of a batch of two in training mode; None where all are content. Nothing in it changes."""
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    weights = next(network.parameters(), torch.empty(0))
    image = weights.new_zeros(2, network.spec.in_channels, *network.spec.patch_size)
    training = network.training
    network.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            functional_call(network, kept, (image,))
    except (ValueError, RuntimeError) as error:
        lines = str(error).splitlines()
        return lines[0] if lines else type(error).__name__
    finally:
        network.train(training)
    return None


def _text(patch: tuple[int, ...]) -> str:
    return " × ".join(map(str, patch))
