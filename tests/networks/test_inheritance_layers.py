"""The description of the layers that inheritance goes by, against what the networks compute."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.core.errors import RunError
from medkd.networks import SegmentationNetwork, build_network
from medkd.networks.inheritance_layers import check_inheritance, layers
from medkd.networks.inheritance_twins import counterparts
from tests.networks.checks import architecture, image, small

GROWING, LEVEL = (8, 16, 24), (8, 16, 16)  # channels per stage; between two stages of one width a shortcut only pools
CASES = [("plain_unet", GROWING), ("resenc_unet_l", GROWING), ("resenc_unet_l", LEVEL)]


def _network(name: str, rank: int = 2, features: tuple[int, ...] = GROWING, divisor: int = 1) -> SegmentationNetwork:
    """A network without equal channels: norms start with ones and zeros otherwise."""
    torch.manual_seed(0)
    plan = replace(architecture(rank, (2, 1, 3), (1, 2)), features_per_stage=features)
    net = build_network(small(name, rank, architecture=plan, width_divisor=divisor))
    for module in net.modules():
        if isinstance(module, nn.InstanceNorm2d | nn.InstanceNorm3d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return net.eval()


def _outputs(net: SegmentationNetwork, x: Tensor) -> list[Tensor]:
    """Logits of all resolutions."""
    net.deep_supervision = True
    with torch.no_grad():
        return net.train()(x)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize(("name", "features"), CASES)
def test_channels_can_be_reordered_group_by_group(name: str, features: tuple[int, ...], rank: int) -> None:
    net = _network(name, rank, features)
    x = image(net, 1)
    before = _outputs(net, x)
    orders: dict[str, Tensor] = {}
    taken: dict[str, Tensor] = {}  # by convolution
    with torch.no_grad():
        for layer in layers(net):  # type: ignore[arg-type]
            conv = net.net.get_submodule(layer.conv)
            inputs = torch.arange(1)
            for i, source in enumerate(layer.sources):
                inputs = torch.cat([inputs, taken[source] + len(inputs)]) if i else taken[source]
            taken[layer.conv] = own = orders.setdefault(
                layer.group, torch.arange(3) if layer.is_head else torch.randperm(conv.out_channels)
            )
            turned = isinstance(conv, nn.ConvTranspose2d | nn.ConvTranspose3d)
            conv.weight.copy_(conv.weight[inputs][:, own] if turned else conv.weight[own][:, inputs])
            norm = net.net.get_submodule(layer.norm) if layer.norm else nn.Identity()
            for value in (conv.bias, *norm.parameters()):
                if value is not None:
                    value.copy_(value[own])
    assert any((order != torch.arange(len(order))).any() for order in orders.values())
    for a, b in zip(before, _outputs(net, x), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "features"), CASES)
def test_every_convolution_is_there_and_takes_what_its_sources_give(name: str, features: tuple[int, ...]) -> None:
    net = _network(name, 3, features)
    found = layers(net)  # type: ignore[arg-type]
    kinds = (nn.Conv3d, nn.ConvTranspose3d)
    aliases = {
        module: path for path, module in net.net.named_modules(remove_duplicate=False) if isinstance(module, kinds)
    }
    assert Counter(net.net.get_submodule(layer.conv) for layer in found) == Counter(dict.fromkeys(aliases, 1))
    given: dict[str, Tensor] = {}
    left: dict[str, Tensor] = {}
    for layer in found:
        net.net.get_submodule(layer.conv).register_forward_pre_hook(
            lambda _, args, name=layer.conv: given.update({name: args[0].clone()})
        )
        if layer.output:
            net.net.get_submodule(layer.output).register_forward_hook(
                lambda _, __, out, name=layer.conv: left.update({name: out.clone()})
            )
    x = image(net, 1)
    _outputs(net, x)
    for layer in found:
        expected = torch.cat([left[source] for source in layer.sources], 1) if layer.sources else x
        if ".skip." in layer.conv:
            pooled = tuple(a // b for a, b in zip(expected.shape[2:], given[layer.conv].shape[2:], strict=True))
            assert layer.output is None and (prod(pooled) > 1) == (".stages.0." not in layer.conv)
            expected = F.avg_pool3d(expected, pooled)
        assert torch.equal(given[layer.conv], expected)


def test_the_additions_alone_make_groups() -> None:
    def together(features: tuple[int, ...]) -> list[list[str]]:
        members: dict[str, list[str]] = {}
        for layer in layers(_network("resenc_unet_m", features=features)):  # type: ignore[arg-type]
            members.setdefault(layer.group, []).append(layer.conv.removeprefix("encoder.").removesuffix(".conv"))
        return [group for group in members.values() if len(group) > 1]

    first = ["stem.convs.0", "stages.0.blocks.0.conv2", "stages.0.blocks.1.conv2"]
    second = ["stages.1.blocks.0.skip.1", "stages.1.blocks.0.conv2"]
    third = [f"stages.2.blocks.{j}.conv2" for j in range(3)]
    assert together(GROWING) == [first, second, ["stages.2.blocks.0.skip.1", *third]]
    assert together(LEVEL) == [first, second + third]


def test_sizes_of_one_kind_may_mix() -> None:
    student, teacher = _network("resenc_unet_m", divisor=2), _network("resenc_unet_xl")
    assert check_inheritance(student, teacher) == (student, teacher)


def test_pairs_that_cannot_inherit_are_refused() -> None:
    plain, residual = _network("plain_unet"), _network("resenc_unet_m")
    for a, b in ((plain, residual), (residual, plain)):
        kinds = f"the student is a {type(a).__name__} and the teacher is a {type(b).__name__}"
        with pytest.raises(
            RunError, match=rf"two networks 'plain_unet' or two 'resenc_unet_\*', but {kinds}; .* --init random"
        ):
            check_inheritance(a, b)
    for net in (plain, residual):
        name = net.spec.name
        with pytest.raises(RunError, match=r"has 8 channels there and 4 in the teacher"):
            counterparts(net, _network(name, divisor=2))  # type: ignore[arg-type]
        with pytest.raises(RunError, match=r"takes 1 channels in 2D and the teacher 1 in 3D"):
            check_inheritance(net, _network(name, rank=3))
    with pytest.raises(
        RunError, match=r"stages\.1\.blocks\.0\.skip\.1\.conv is in one of the two only; lower --width-divisor"
    ):  # the first two stages have four channels
        counterparts(_network("resenc_unet_m", divisor=4), residual)  # type: ignore[arg-type]
    plain.net.encoder.stages[0][0].convs[0].norm = nn.BatchNorm2d(8)
    with pytest.raises(RunError, match="instance norms, but the teacher"):
        check_inheritance(_network("plain_unet", divisor=2), plain)
    residual.net.encoder.stages[1].blocks[0].skip[1].norm = nn.BatchNorm2d(16)
    with pytest.raises(RunError, match="instance norms, but the student"):
        check_inheritance(residual, _network("resenc_unet_m"))
