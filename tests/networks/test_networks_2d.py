"""fcn_r18/r50, transunet and missformer: networks that exist in 2D only."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from medkd.core.errors import RunError
from medkd.networks import build_network, missformer
from medkd.networks.complexity import count_parameters
from medkd.networks.missformer import MixFeedForward, join_scales, split_scales
from tests.networks.checks import check_network, check_taps, image, parameters_in_millions, small


@pytest.mark.slow
@pytest.mark.parametrize(("name", "patch"), [("fcn_r18", 32), ("transunet", 32), ("missformer", 64)])
def test_taps_gradients_and_continuation(name: str, patch: int) -> None:
    net = build_network(small(name, 2, channels=2, patch=patch))
    if name == "fcn_r18":
        net.reduce[3].p = 0.0
    check_network(net)


def test_fcn_r50_taps_and_size_equal_torchvisions() -> None:
    torchvision = pytest.importorskip("torchvision")
    net = build_network(small("fcn_r50", 2, channels=3, outputs=21, patch=32))
    check_taps(net, image(net))
    reference = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=None
    )
    assert count_parameters(net) == count_parameters(reference)
    names = {n for n, _ in reference.backbone.named_parameters()}
    assert {n.removeprefix("net.") for n, _ in net.named_parameters() if n.startswith("net.")} == names


def test_fcn_r50_computes_what_torchvisions_does() -> None:
    torchvision = pytest.importorskip("torchvision")
    net = build_network(small("fcn_r50", 2, channels=3, outputs=4, patch=32)).eval()
    reference = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=4, aux_loss=None
    ).eval()
    own = dict(net.net.state_dict())
    reference.backbone.load_state_dict({k: own[k] for k in reference.backbone.state_dict()})
    head = {
        **{f"{i}.{k}": v for i in (0, 1) for k, v in net.reduce[i].state_dict().items()},
        **prefixed("4", net.classify),
    }
    reference.classifier.load_state_dict(head)
    x = image(net)
    with torch.no_grad():
        torch.testing.assert_close(net(x), reference(x)["out"], rtol=1e-4, atol=1e-5)


def prefixed(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{k}": v for k, v in module.state_dict().items()}


def test_transunet_has_its_published_size() -> None:
    """105.28 M at 224², 3 channels, 9 classes."""
    assert parameters_in_millions("transunet", 3, 9, 2, patch=224) == pytest.approx(105.28, abs=0.005)


def test_transunet_refuses_another_size() -> None:
    with torch.device("meta"):
        net = build_network(small("transunet", 2, patch=32))
        with pytest.raises(RunError, match="32"):
            net(torch.zeros(1, 1, 48, 48))


def test_missformer_has_its_published_size_without_unused_parameters() -> None:
    """42.46 M in the papers, of which the authors' code never uses two 512-channel blocks, a linear layer and spare
    norms.
    """
    block = count_parameters(missformer.Block(512, 8, 1))
    linear = 1024 * 512 + 512
    widths = {"encoder": (64, 128, 320, 512), "bridge": (64, 128, 320, 512) * 2, "decoder": (64, 128, 320, 512)}
    spare_norms = sum(2 * 2 * (2 * 4 * width) for group in widths.values() for width in group)
    published = (
        count_parameters(build_network(small("missformer", 2, channels=3, outputs=9, patch=32)))
        + 2 * block
        + linear
        + spare_norms
    )
    assert round(published / 1e6, 2) == 42.46


def test_missformer_scales_are_joined_and_split_without_loss() -> None:
    sizes = [(8, 8), (4, 4), (2, 2), (1, 1)]
    maps = [torch.randn(2, h * w, width) for (h, w), width in zip(sizes, missformer.WIDTHS, strict=True)]
    joined = join_scales(maps)
    assert joined.shape == (2, 64 + 16 * 2 + 4 * 5 + 8, 64)
    assert all(torch.equal(a, b) for a, b in zip(split_scales(joined, sizes), maps, strict=True))


def test_missformer_feed_forward_is_the_papers_formula() -> None:
    layer = MixFeedForward(4)
    x = torch.randn(1, 6, 4)
    y = layer.widen(x)
    spatial = layer.depthwise(y.transpose(1, 2).reshape(1, 16, 2, 3)).reshape(1, 16, 6).transpose(1, 2)
    torch.testing.assert_close(layer(x, (2, 3)), layer.narrow(nn.functional.gelu(layer.norm(y + spatial))))


def test_missing_timm_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RunError, match=r"medkd\[detection\]"):
        build_network(small("fcn_r18", 2))


def test_2d_networks_are_refused_in_3d() -> None:
    for name in ("fcn_r18", "transunet", "missformer"):
        with pytest.raises(RunError, match="2D only"):
            build_network(small(name, 3, patch=32))
