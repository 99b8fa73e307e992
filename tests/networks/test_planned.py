"""plain_unet and resenc_unet_*: the networks that take their shape from the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medkd.core.errors import RunError
from medkd.networks import NETWORKS, build_network
from tests.networks.checks import architecture, check_forward_from, check_taps, image, small, unused_parameters

NAMES = ("plain_unet", "resenc_unet_m", "resenc_unet_l", "resenc_unet_xl")


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_taps_gradients_and_continuation(name: str, rank: int) -> None:
    net = build_network(small(name, rank, channels=2, architecture=architecture(rank)))
    x = image(net)
    assert unused_parameters(net, x) == [
        "net.decoder.seg_layers.0.weight",
        "net.decoder.seg_layers.0.bias",
    ]  # the coarser head
    check_taps(net, x)
    check_forward_from(net, x)


@pytest.mark.parametrize("rank", [2, 3])
def test_resenc_with_nnunets_block_counts_publishes_right_corrections(rank: int) -> None:
    net = build_network(small("resenc_unet_l", rank, architecture=architecture(rank, (1, 3, 1), (1, 1))))
    check_taps(net, image(net))
    assert {t.name: t.correction for t in net.taps} == {
        "enc0": True,
        "enc1": True,
        "bottleneck": False,
        "dec1": False,
        "dec0": False,
    }


@pytest.mark.parametrize("name", ["plain_unet", "resenc_unet_m"])
def test_own_loop_equals_the_librarys_forward(name: str) -> None:
    net = build_network(small(name, 3, architecture=architecture(3))).eval()
    x = image(net)
    assert torch.equal(net(x), net.net(x))


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", ["plain_unet", "resenc_unet_m"])
def test_deep_supervision_only_in_training(name: str, rank: int) -> None:
    net = build_network(small(name, rank, architecture=architecture(rank), deep_supervision=True))
    x = image(net)
    outputs = net.train()(x)
    assert len(outputs) == len(net.deep_supervision_strides) == 2
    for logits, stride in zip(outputs, net.deep_supervision_strides, strict=True):
        assert logits.shape[2:] == tuple(n // s for n, s in zip(x.shape[2:], stride, strict=True))
    with torch.no_grad():
        assert torch.equal(net.eval()(x), outputs[0])
    net.net.decoder.deep_supervision = True
    for own, theirs in zip(outputs, net.net(x), strict=True):
        assert torch.equal(own, theirs)


@pytest.mark.parametrize(("divisor", "widths"), [(1, [8, 16, 24]), (2, [4, 8, 12]), (4, [4, 4, 6])])
def test_width_divisor_divides_channels_down_to_four(divisor: int, widths: list[int]) -> None:
    net = build_network(small("plain_unet", 3, architecture=architecture(3), width_divisor=divisor))
    assert [t.channels for t in net.taps if t.stage != "decoder"] == widths
    check_taps(net, image(net))


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_every_planned_network_can_be_a_narrow_student(name: str, rank: int) -> None:
    shape = replace(architecture(rank), features_per_stage=(16, 32, 64))
    wide, narrow = (build_network(small(name, rank, architecture=shape, width_divisor=d)) for d in (1, 2))
    assert [t.name for t in narrow.taps] == [t.name for t in wide.taps]
    assert [2 * t.channels for t in narrow.taps] == [t.channels for t in wide.taps]
    counts = [sum(p.numel() for p in net.parameters()) for net in (wide, narrow)]
    assert 3.5 < counts[0] / counts[1] < 4.0  # weights fall by four, biases and norms by two
    x = image(narrow)
    check_taps(narrow, x)
    check_forward_from(narrow, x)


def test_width_divisor_needs_a_planned_network() -> None:
    with pytest.raises(RunError, match="width-divisor"):
        build_network(small("unet_tiny", 3, width_divisor=2))


def test_missing_plan_and_unfit_patch_are_refused() -> None:
    with pytest.raises(RunError, match="plan"):
        build_network(small("plain_unet", 3))
    with pytest.raises(RunError, match="multiples"):
        build_network(replace(small("plain_unet", 3, architecture=architecture(3)), patch_size=(16, 16, 18)))


def test_initialisation_is_nnunets() -> None:
    """He-normal for LeakyReLU 0.01: standard deviation sqrt(2 / (1.0001 fan_in)); residual branches start at zero."""
    net = build_network(
        small("resenc_unet_m", 3, architecture=replace(architecture(3), features_per_stage=(32, 64, 96)))
    )
    block = net.net.encoder.stages[1].blocks[1]
    weight = block.conv1.conv.weight
    assert weight.std().item() == pytest.approx((2 / 1.0001 / (64 * 27)) ** 0.5, rel=0.02)
    assert block.conv1.conv.bias.abs().max() == 0
    assert block.conv2.norm.weight.abs().max() == 0


def test_all_planned_networks_say_so() -> None:
    assert [n for n in NETWORKS if NETWORKS[n].planned] == list(NAMES)
