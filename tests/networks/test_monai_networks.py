"""mednext, swin_unetr, attention_unet and unet_r18/r50: networks that MONAI offers."""

from __future__ import annotations

import pytest
import torch

from medkd.networks import build_network, swin_unetr
from tests.networks.checks import check_network, check_taps, image, oblong, parameters_in_millions, small

NAMES = ("mednext_s", "swin_unetr", "attention_unet", "unet_r18")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_taps_gradients_continuation_and_equality_with_the_library(
    name: str, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swin_unetr, "WIDTH", 12)  # a quarter of its width, to be quick
    net = build_network(oblong(name, rank, channels=2))
    check_network(net)
    x = image(net)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), net.net(x))


@pytest.mark.parametrize("name", ["mednext_b", "mednext_m", "mednext_l", "unet_r50"])
def test_larger_sizes_publish_right_taps(name: str) -> None:
    net = build_network(oblong(name, 2))
    check_taps(net, image(net))


@pytest.mark.parametrize(
    ("name", "expected"), [("mednext_s", 5.6), ("mednext_b", 10.5), ("mednext_m", 17.6), ("mednext_l", 61.8)]
)
def test_mednext_sizes_are_the_papers(name: str, expected: float) -> None:
    assert parameters_in_millions(name, 1, 14, patch=32) == pytest.approx(expected, rel=0.01)


def test_swin_unetr_has_its_published_size() -> None:
    assert parameters_in_millions("swin_unetr", 1, 14, patch=64) == 62.187


def test_mednext_deep_supervision_covers_every_decoder_stage() -> None:
    net = build_network(small("mednext_s", 2, patch=32, deep_supervision=True))
    outputs = net.train()(image(net))
    assert [tuple(o.shape[2:]) for o in outputs] == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert net.deep_supervision_strides == ((1, 1), (2, 2), (4, 4), (8, 8))
    sum(o.mean() for o in outputs).backward()
    assert all(p.grad is not None for p in net.parameters())
    with torch.no_grad():
        assert isinstance(net.eval()(image(net)), torch.Tensor)


def test_attention_unet_in_3d_has_a_quarter_of_the_channels() -> None:
    with torch.device("meta"):
        widths = [[t.channels for t in build_network(small("attention_unet", rank)).taps[:5]] for rank in (2, 3)]
    assert widths == [[64, 128, 256, 512, 1024], [16, 32, 64, 128, 256]]
