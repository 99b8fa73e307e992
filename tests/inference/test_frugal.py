"""Decoders that hold fewer feature maps compute what they computed before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medkd.core.live_memory import LivePeak
from medkd.core.plan import Architecture
from medkd.core.run import NetworkSpec
from medkd.inference import blocks, frugal, winograd
from medkd.inference.blocks import InPlaceBlock
from medkd.inference.frugal import FrugalDecoder
from medkd.inference.tuning import tune
from medkd.networks import build_network

CPU = torch.device("cpu")
NAMES = ["plain_unet", "resenc_unet_m"]


def network(name: str = "plain_unet", rank: int = 3) -> Any:
    """Two stages of 24 and 32 channels, so that the finest joins 48; norms have weights that are not those of the
    start.
    """
    shape = Architecture(
        patch_size=(12,) * rank,
        batch_size=2,
        features_per_stage=(24, 32),
        kernel_sizes=((3,) * rank,) * 2,
        strides=((1,) * rank, (2,) * rank),
        blocks_encoder=(2, 2),
        blocks_decoder=(2,),
    )
    torch.manual_seed(0)
    spec = NetworkSpec(name=name, in_channels=1, num_outputs=3, patch_size=(12,) * rank, architecture=shape)
    net = build_network(spec).eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, (nn.InstanceNorm2d, nn.InstanceNorm3d)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return net


def watched(net: Any) -> Any:
    """A copy at all of whose blocks somebody looks, so that it takes the ordinary way."""
    seen = copy.deepcopy(net)
    watched_blocks = [module for module in seen.modules() if isinstance(module, InPlaceBlock)]
    assert watched_blocks
    for block in watched_blocks:
        block.register_forward_hook(lambda *_: None)
    return seen


def predict(net: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return net(x)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_the_logits_are_the_same_bit_by_bit(name: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "LEAST_VOXELS", 1)
    monkeypatch.setattr(blocks, "_BYTES", 4 * 12**3 * 5)  # five channels at a time
    plain = network(name)
    net, x = tune(copy.deepcopy(plain), CPU), torch.randn(batch, 1, 12, 12, 12) * 3 + 1
    assert isinstance(net, FrugalDecoder) and isinstance(net, type(plain))
    found = predict(net, x)
    assert torch.equal(found, predict(watched(net), x))
    torch.testing.assert_close(found.double(), predict(plain.double(), x.double()), atol=1e-4, rtol=1e-4)


def test_far_fewer_feature_maps_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_BYTES", 1)  # what is held besides maps is small beside large ones
    monkeypatch.setattr(blocks, "_BYTES", 1)
    net, x = tune(network(), CPU), torch.randn(1, 1, 24, 24, 24)
    peaks = []
    for one in (watched(net), net):
        predict(one, x)  # kernels are transformed once
        with LivePeak() as live:
            predict(one, x)
        peaks.append(live.highest)
    a_map = 4 * 24 * 24**3
    assert peaks[0] > 7 * a_map
    assert peaks[1] < 4.2 * a_map


def test_who_looks_at_layers_sees_what_they_give() -> None:
    plain = network()
    net, x = tune(copy.deepcopy(plain), CPU), torch.randn(1, 1, 12, 12, 12)
    seen: dict[str, Tensor] = {}
    for name, one in (("plain", plain), ("tuned", net)):
        conv = one.net.decoder.stages[0].convs[1].conv
        conv.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
        predict(one, x)
    torch.testing.assert_close(seen["tuned"], seen["plain"], atol=1e-4, rtol=1e-4)


def test_a_remembered_pass_can_be_continued() -> None:
    net, x = tune(network(), CPU), torch.randn(1, 1, 12, 12, 12)
    net.remember = True
    expected = predict(net, x)
    with torch.inference_mode():
        bottleneck = net.encode(x)[-1]
        assert torch.equal(net.forward_from("bottleneck", bottleneck), expected)


def test_gradients_and_other_arithmetic_go_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = tune(network(), CPU), torch.randn(1, 1, 12, 12, 12, requires_grad=True)
    monkeypatch.setattr(frugal, "_convolved", lambda *_: pytest.fail("frugal"))
    net(x).sum().backward()
    assert x.grad is not None
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(x).isfinite().all()


def test_2d_networks_are_frugal_too() -> None:
    net, x = tune(network(rank=2), CPU), torch.randn(2, 1, 12, 12)
    assert isinstance(net, FrugalDecoder)
    assert torch.equal(predict(net, x), predict(watched(net), x))


def test_stages_of_another_kind_are_left_alone() -> None:
    class Other(nn.Sequential):
        pass

    net = network()
    net.net.decoder.stages[0] = Other(net.net.decoder.stages[0])
    assert not isinstance(tune(net, CPU), FrugalDecoder)
    assert not isinstance(tune(network(), torch.device("cuda")), FrugalDecoder)
