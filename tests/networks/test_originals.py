"""Networks that are the authors' own: their numbers of parameters, and their layers' outputs with the same weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from medkd.core.run import NetworkSpec
from medkd.networks import build_network
from medkd.networks.complexity import count_parameters
from medkd.networks.reference import build_weightless
from medkd.networks.transunet_paper import Block, Bottleneck
from medkd.networks.unet_d8 import AttentionGate
from medkd.training.losses import SegmentationLoss


def build(name: str, outputs: int, patch: tuple[int, ...], channels: int = 1) -> nn.Module:
    return build_weightless(NetworkSpec(name=name, in_channels=channels, num_outputs=outputs, patch_size=patch))


# FCN-R50-D8 of mmsegmentation (49.50 M with 19 classes), layer by layer: ResNet-50 without its classifier, the deep
# stem in place of the plain one, the head's three convolutions and classifier, the auxiliary head
STEMS = 3 * 32 * 9 + 64 + 32 * 32 * 9 + 64 + 32 * 64 * 9 + 128 - (3 * 64 * 49 + 128)
HEAD = (2048 + 512 + 2560) * 512 * 9 + 3 * 1024 + 513 * 19
FCN_R50 = 23_508_032 + STEMS + HEAD + 1024 * 256 * 9 + 512 + 257 * 19


SIDE = 1024 * 256 * 9 + 512 + 257 * 19
# PSPNet-R101-D8: four point-wise convolutions beside the map, and the one that joins
PSPNET_R101 = 42_500_160 + STEMS + 4 * (2048 * 512 + 1024) + (2048 + 4 * 512) * 512 * 9 + 1024 + 513 * 19 + SIDE
# DeepLabV3-R18-D8: mean and point-wise convolution, three dilated ones, and the one that joins
DILATED = 2 * (512 * 128 + 256) + 3 * (512 * 128 * 9 + 256) + 5 * 128 * 128 * 9 + 256
DEEPLAB_R18 = 11_176_512 + STEMS + DILATED + 129 * 19 + 256 * 64 * 9 + 128 + 65 * 19


@pytest.mark.parametrize(
    ("name", "outputs", "patch", "channels", "parameters"),
    [
        ("mednext_b_paper", 3, (64, 64, 64), 1, 10_526_339),
        ("mednext_m_paper", 3, (64, 64, 64), 1, 17_548_995),
        ("mednext_l_paper", 3, (64, 64, 64), 1, 61_779_299),
        ("transunet_paper", 9, (224, 224), 3, 105_277_081),
        ("fcn_r50_d8", 19, (64, 64), 3, FCN_R50),
        ("pspnet_r101", 19, (64, 64), 3, PSPNET_R101),
        ("deeplabv3_r18", 19, (64, 64), 3, DEEPLAB_R18),
    ],
)
def test_parameters_are_the_originals(
    name: str, outputs: int, patch: tuple[int, ...], channels: int, parameters: int
) -> None:
    assert count_parameters(build(name, outputs, patch, channels)) == parameters


def test_former_names_mean_what_they_meant() -> None:
    assert count_parameters(build("mednext_b", 3, (64, 64, 64))) == 10_510_883
    assert count_parameters(build("transunet", 9, (224, 224), 3)) == 105_277_081


def test_down_blocks_expand_as_the_stage_that_they_enter() -> None:
    network = build("mednext_l_paper", 3, (64, 64, 64))
    widths = [(down.conv2.out_channels, 32 * 2**i) for i, down in enumerate(network.net.down_blocks)]  # type: ignore[union-attr, arg-type]
    assert [inner // outer for inner, outer in widths] == [4, 8, 8, 8]


def test_a_residual_unit_is_the_originals() -> None:
    from timm.layers import GroupNormAct, StdConv2d
    from timm.models.resnetv2 import Bottleneck as Theirs

    torch.manual_seed(0)
    ours = Bottleneck(256, 256, 1)
    theirs = Theirs(256, 256, norm_layer=lambda n, **k: GroupNormAct(n, 32, eps=1e-6, **k))
    for part in theirs.modules():
        if isinstance(part, StdConv2d):
            part.eps = 1e-5
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.5)
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(2, 256, 6, 6)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-4, rtol=1e-4)


def test_a_transformer_block_is_the_originals() -> None:
    from timm.models.vision_transformer import Block as Theirs

    torch.manual_seed(0)
    ours, theirs = (
        Block().eval(),
        Theirs(768, 12, qkv_bias=True, norm_layer=lambda n, **k: nn.LayerNorm(n, 1e-6, **k)).eval(),
    )
    attention = ours.attention
    parts = SimpleNamespace(
        weight=torch.cat([p.weight for p in (attention.query, attention.key, attention.value)]),
        bias=torch.cat([p.bias for p in (attention.query, attention.key, attention.value)]),
    )
    with torch.no_grad():
        theirs.attn.qkv.weight.copy_(parts.weight)
        theirs.attn.qkv.bias.copy_(parts.bias)
    theirs.attn.proj.load_state_dict(attention.out.state_dict())
    theirs.mlp.fc1.load_state_dict(ours.mlp[0].state_dict())
    theirs.mlp.fc2.load_state_dict(ours.mlp[3].state_dict())
    tokens = torch.rand(2, 9, 768)
    torch.testing.assert_close(ours(tokens), theirs(tokens), atol=1e-5, rtol=1e-5)


def test_an_unpadded_pooling_shortens_the_first_skip() -> None:
    torch.manual_seed(0)
    spec = NetworkSpec(name="transunet_paper", in_channels=1, num_outputs=2, patch_size=(64, 64))
    network = build_network(spec).eval()
    with torch.no_grad():
        features = network.encode(torch.rand(1, 1, 64, 64))  # type: ignore[operator]
    assert [tuple(f.shape[1:]) for f in features] == [(64, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4)]
    assert bool((features[1][:, :, -1] == 0).all()) and bool((features[1][:, :, :, -1] == 0).all())
    assert bool((features[1][:, :, :-1, :-1] != 0).any())


def test_the_auxiliary_head_speaks_in_training_only() -> None:
    spec = NetworkSpec(name="fcn_r18_d8", in_channels=1, num_outputs=3, patch_size=(64, 64), deep_supervision=True)
    network = build_network(spec)
    main, side = network.train()(torch.rand(2, 1, 64, 64))
    assert main.shape == side.shape == (2, 3, 64, 64)
    assert network.eval()(torch.rand(2, 1, 64, 64)).shape == (2, 3, 64, 64)
    dilations = [block.conv1.dilation[0] for block in (*network.net.layer3, *network.net.layer4)]  # type: ignore[union-attr, misc]
    assert dilations == [1, 2, 2, 4]


def with_random_norms(network: nn.Module) -> nn.Module:
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -1, 1)  # type: ignore[arg-type]
            nn.init.uniform_(part.running_var, 0.5, 2)  # type: ignore[arg-type]
    return network.eval()


def test_pspnet_joins_the_means_over_cells() -> None:
    torch.manual_seed(0)
    spec = NetworkSpec(name="pspnet_r18", in_channels=1, num_outputs=2, patch_size=(96, 96))
    network: Any = with_random_norms(build_network(spec))
    x = torch.rand(1, 512, 12, 12)
    maps = [x]
    with torch.no_grad():
        for cells, reduce in zip((1, 2, 3, 6), network.pyramid, strict=True):
            side = 12 // cells
            means = x.view(1, 512, cells, side, cells, side).mean((3, 5))
            maps.append(nn.functional.interpolate(reduce(means), (12, 12), mode="bilinear"))
        expected = network.join(torch.cat(maps, 1))
        torch.testing.assert_close(network.step(0, x, []), expected, atol=1e-5, rtol=1e-4)


def test_deeplab_sees_what_torchvisions_pyramid_sees() -> None:
    from torchvision.models.segmentation.deeplabv3 import ASPP

    torch.manual_seed(0)
    spec = NetworkSpec(name="deeplabv3_r18", in_channels=1, num_outputs=2, patch_size=(64, 64))
    network: Any = with_random_norms(build_network(spec))
    theirs = ASPP(512, [12, 24, 36], 128).eval()
    for ours, other in zip([*network.pyramid, network.image], theirs.convs, strict=True):
        layers = [part for part in other if not isinstance(part, nn.AdaptiveAvgPool2d)]
        for mine, part in zip(ours, layers, strict=True):
            part.load_state_dict(mine.state_dict())
    found: list[torch.Tensor] = []
    network.join = nn.Identity()
    x = torch.rand(2, 512, 16, 16)
    with torch.no_grad():
        found.append(network.step(0, x, []))
        expected = [part(x) for part in theirs.convs]
    torch.testing.assert_close(found[0], torch.cat([expected[-1], *expected[:-1]], 1), atol=1e-5, rtol=1e-4)


def test_the_attention_gate_weighs_the_skip() -> None:
    torch.manual_seed(0)
    gate = AttentionGate(8, 16).eval()
    skip, coarse = torch.rand(2, 8, 16, 16), torch.rand(2, 16, 8, 8)
    assert not torch.equal(gate(skip, coarse), gate(skip, torch.rand(2, 16, 8, 8)))
    nn.init.zeros_(gate.psi.weight)
    for bias, share in ((100.0, 1.0), (-100.0, 0.0), (0.0, 0.5)):
        nn.init.constant_(gate.psi.bias, bias)  # type: ignore[arg-type]
        torch.testing.assert_close(gate(skip, coarse), gate.combine(gate.out(share * skip)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["unet_r18_d8", "attention_unet_r18_d8", "unet_r50_d8"])
def test_the_librarys_unets_are_of_stride_eight_and_have_four_levels(name: str) -> None:
    spec = NetworkSpec(name=name, in_channels=1, num_outputs=3, patch_size=(64, 64), deep_supervision="r18" in name)
    network: Any = build_network(spec)
    strides = [tap.stride[0] for tap in network.taps]
    assert strides == [4, 8, 8, 8, 8, 8, 4]
    assert network.net.conv1[0].kernel_size == (3, 3)  # the stem of ResNet-V1c
    assert any(isinstance(part, nn.InstanceNorm2d) for part in network.modules()) == ("r50" in name)
    outputs = network.train()(torch.rand(2, 1, 64, 64))
    shapes = [tuple(output.shape) for output in (outputs if isinstance(outputs, list) else [outputs])]
    assert shapes == [(2, 3, 64, 64)] * (2 if "r18" in name else 1)
    gates = [part for part in network.modules() if isinstance(part, AttentionGate)]
    assert len(gates) == (3 if "attention" in name else 0)


def test_the_auxiliary_heads_loss_counts() -> None:
    torch.manual_seed(0)
    spec = NetworkSpec(name="pspnet_r18", in_channels=1, num_outputs=3, patch_size=(64, 64), deep_supervision=True)
    network = build_network(spec)
    main, side = network.train()(torch.rand(2, 1, 64, 64))
    target = torch.randint(0, 3, (2, 1, 64, 64))
    plain = SegmentationLoss(regions=False, batch_dice=False)
    both = SegmentationLoss(regions=False, batch_dice=False, auxiliary=network.auxiliary_weight)
    first, second, found = plain(main, target), plain(side, target), both([main, side], target)
    for term in ("dice", "ce"):
        torch.testing.assert_close(found[term], first[term] + 0.4 * second[term])
    sum(found.values()).backward()
    assert all(p.grad is not None for p in network.auxiliary.parameters())  # type: ignore[union-attr]
