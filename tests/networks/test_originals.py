"""Networks that are the authors' own: their numbers of parameters, and their layers' outputs with the same weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from medkd.core.run import NetworkSpec
from medkd.networks import build_network
from medkd.networks.complexity import count_parameters
from medkd.networks.transunet_paper import Block, Bottleneck


def build(name: str, outputs: int, patch: tuple[int, ...], channels: int = 1) -> nn.Module:
    with torch.device("meta"):
        return build_network(NetworkSpec(name=name, in_channels=channels, num_outputs=outputs, patch_size=patch))


# FCN-R50-D8 of mmsegmentation (49.50 M with 19 classes), layer by layer: ResNet-50 without its classifier, the deep
# stem in place of the plain one, the head's three convolutions and classifier, the auxiliary head
STEMS = 3 * 32 * 9 + 64 + 32 * 32 * 9 + 64 + 32 * 64 * 9 + 128 - (3 * 64 * 49 + 128)
HEAD = (2048 + 512 + 2560) * 512 * 9 + 3 * 1024 + 513 * 19
FCN_R50 = 23_508_032 + STEMS + HEAD + 1024 * 256 * 9 + 512 + 257 * 19


@pytest.mark.parametrize(
    ("name", "outputs", "patch", "channels", "parameters"),
    [
        ("mednext_b_paper", 3, (64, 64, 64), 1, 10_526_339),
        ("mednext_m_paper", 3, (64, 64, 64), 1, 17_548_995),
        ("mednext_l_paper", 3, (64, 64, 64), 1, 61_779_299),
        ("transunet_paper", 9, (224, 224), 3, 105_277_081),
        ("fcn_r50_d8", 19, (64, 64), 3, FCN_R50),
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
