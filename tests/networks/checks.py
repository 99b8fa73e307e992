"""Checks that every network must pass, and small specifications to build networks from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medkd.core.plan import Architecture
from medkd.core.run import NetworkSpec
from medkd.networks import NETWORKS, SegmentationNetwork
from medkd.networks.reference import build_weightless


def architecture(
    rank: int, blocks_encoder: tuple[int, ...] = (2, 2, 2), blocks_decoder: tuple[int, ...] = (2, 2)
) -> Architecture:
    """A small anisotropic plan of three stages."""
    kernels = ((3,) * rank, (3,) * rank, (3,) * rank)
    kernels = ((1, *kernels[0][1:]), *kernels[1:])
    strides = ((1,) * rank, (1, *(2,) * (rank - 1)), (2,) * rank)
    return Architecture(
        patch_size=(8,) * rank,
        batch_size=2,
        features_per_stage=(8, 16, 24),
        kernel_sizes=kernels,
        strides=strides,
        blocks_encoder=blocks_encoder,
        blocks_decoder=blocks_decoder,
    )


def small(name: str, rank: int, *, channels: int = 1, outputs: int = 3, patch: int = 16, **more: Any) -> NetworkSpec:
    """A specification with a cubic (or square) patch."""
    return NetworkSpec(name=name, in_channels=channels, num_outputs=outputs, patch_size=(patch,) * rank, **more)


def oblong(name: str, rank: int, *, channels: int = 1, outputs: int = 3) -> NetworkSpec:
    """A specification with the smallest patch that leaves two voxels at the lowest resolution, which instance norm
    needs.
    """
    divisor = NETWORKS[name].divisor
    return NetworkSpec(
        name=name, in_channels=channels, num_outputs=outputs, patch_size=(2 * divisor, *(divisor,) * (rank - 1))
    )


def image(net: SegmentationNetwork, batch: int = 2) -> Tensor:
    """A random input of the network's patch size."""
    return torch.randn(batch, net.spec.in_channels, *net.spec.patch_size)


def parameters_in_millions(name: str, channels: int, outputs: int, rank: int = 3, **more: Any) -> float:
    """Parameters of a network, counted the plain way, rounded as the cards do."""
    net = build_weightless(small(name, rank, channels=channels, outputs=outputs, **more))
    return round(sum(p.numel() for p in net.parameters()) / 1e6, 3)


def check_network(net: SegmentationNetwork) -> None:
    """Forward, backward and everything that the taps promise; every parameter must be in use."""
    x = image(net)
    assert unused_parameters(net, x) == []
    check_taps(net, x)
    check_forward_from(net, x)


def unused_parameters(net: SegmentationNetwork, x: Tensor) -> list[str]:
    """Check logits and gradients of a training step; names of the parameters that it does not use."""
    net.train()
    logits = net(x)
    assert isinstance(logits, Tensor)
    assert logits.shape == (x.shape[0], net.spec.num_outputs, *x.shape[2:])
    logits.square().mean().backward()
    unused = [n for n, p in net.named_parameters() if p.grad is None]
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    net.zero_grad(set_to_none=True)
    return unused


def check_taps(net: SegmentationNetwork, x: Tensor) -> None:
    """Channels, stride, rank, order and correction of every tap hold in a forward pass with hooks."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        net.get_submodule(tap.module).register_forward_hook(
            lambda _module, inputs, output, name=tap.name: seen.update({name: (inputs[0], output)})
        )
        for tap in net.taps
    ]
    net.eval()
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    assert len({tap.name for tap in net.taps}) == len(net.taps)
    for tap in net.taps:
        entered, left = seen[tap.name]
        assert tap.rank == net.rank
        expected = (x.shape[0], tap.channels, *(n // s for n, s in zip(x.shape[2:], tap.stride, strict=True)))
        assert left.shape == expected, tap.name
        assert not tap.correction or entered.shape == left.shape, tap.name
    order = ["encoder", "bottleneck", "decoder"]
    places = [order.index(tap.stage) for tap in net.taps]
    assert places == sorted(places)
    levels = [int(tap.name.removeprefix("dec").split(".")[0]) for tap in net.taps if tap.stage == "decoder"]
    assert levels == sorted(levels, reverse=True)


def check_forward_from(net: SegmentationNetwork, x: Tensor) -> None:
    """Continuing from a captured feature gives the logits of the whole pass, and another feature other logits."""
    names = [tap.name for tap in net.taps if tap.stage == "decoder" and not tap.raw]
    paths = {tap.name: tap.module for tap in net.taps}
    features: dict[str, Tensor] = {}
    handles = [
        net.get_submodule(paths[n]).register_forward_hook(
            lambda _m, _i, output, name=n: features.update({name: output.clone()})
        )
        for n in names
    ]
    net.eval()
    net.remember = True
    with torch.no_grad():
        logits = net(x)
        for handle in handles:
            handle.remove()
        for name in names:
            torch.testing.assert_close(net.forward_from(name, features[name]), logits, rtol=0, atol=0)
        assert not torch.allclose(net.forward_from(names[-1], features[names[-1]].roll(1, 0)), logits)
    net.remember = False
