"""The table of networks as a whole."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from medkd.core.errors import RunError
from medkd.core.run import NetworkSpec
from medkd.networks import NETWORKS, build_network, fit_patch, reference
from medkd.networks.reference import build_weightless, reference_spec
from tests.networks.checks import architecture, small

THREE_D = {
    *(
        "res_unet",
        "unet_tiny",
        "segresnet",
        "espnetv2",
        "mobile_unet",
        "lcov_net",
        "swin_unetr",
        "attention_unet",
        "plain_unet",
    ),
    *(f"mednext_{size}" for size in "sbml"),
    *(f"resenc_unet_{size}" for size in ("m", "l", "xl")),
}
TWO_D = {
    "fcn_r18",
    "fcn_r50",
    "unet_r18",
    "unet_r50",
    "attention_unet",
    "mednext_s",
    "missformer",
    "transunet",
    "swin_unetr",
}


def test_all_promised_networks_exist_in_their_ranks() -> None:
    assert {n for n in NETWORKS if 3 in NETWORKS[n].ranks} >= THREE_D
    assert {n for n in NETWORKS if 2 in NETWORKS[n].ranks} >= TWO_D | THREE_D


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_network_has_a_citation_and_publishes_taps_for_any_pairing(name: str) -> None:
    """An encoder, a bottleneck and a decoder tap, with modules that exist; coarser stages have larger strides."""
    assert any(character.isdigit() for character in NETWORKS[name].citation)
    net = build_weightless(reference_spec(name, NETWORKS[name].ranks[0]))
    assert {tap.stage for tap in net.taps} == {"encoder", "bottleneck", "decoder"}
    for tap in net.taps:
        net.get_submodule(tap.module)
    encoder = [tap.stride for tap in net.taps if tap.stage != "decoder"]
    decoder = [tap.stride for tap in net.taps if tap.stage == "decoder"]
    assert encoder == sorted(encoder)
    assert decoder == sorted(decoder, reverse=True)
    assert net.spec.num_outputs not in [tap.channels for tap in net.taps]


@pytest.mark.parametrize("name", ["plain_unet", "unet_tiny", "lcov_net", "swin_unetr"])
def test_a_network_without_memory_has_the_weights_of_one_with_memory(name: str) -> None:
    more = {"architecture": architecture(3)} if NETWORKS[name].planned else {}
    spec = small(name, 3, patch=64, **more)
    weightless, real = build_weightless(spec), build_network(spec)
    assert {tensor.device.type for tensor in weightless.state_dict().values()} == {"meta"}
    kinds = [
        {key: (value.shape, value.requires_grad) for key, value in net.named_parameters()} for net in (weightless, real)
    ]
    assert kinds[0] == kinds[1]
    assert all(value.abs().max() > 0 for key, value in real.named_parameters() if value.ndim > 2)


class Filled(TorchDispatchMode):
    """Names of the operations that fill tensors with values."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        if name in ("normal_", "uniform_", "fill_", "zero_", "normal_functional"):
            self.names.append(f"{name} {args[0].device}")
        return func(*args, **(kwargs or {}))


def test_only_what_has_values_is_filled_while_a_network_without_memory_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables: list[torch.Tensor] = []

    def build(spec: NetworkSpec) -> nn.Module:
        tables.extend((torch.empty(2, device="cpu").fill_(2.0), nn.init.constant_(torch.empty(2, device="cpu"), 5.0)))
        layer = nn.Conv3d(2, 2, 1)
        return nn.ModuleList([layer, nn.BatchNorm3d(2)]) if nn.init.normal_(layer.weight) is layer.weight else layer

    monkeypatch.setattr(reference, "build_network", build)
    with Filled() as filled:
        built = build_weightless(small("unet_tiny", 3))
    assert isinstance(built, nn.ModuleList) and all(value.is_meta for value in built.parameters())
    assert [table.tolist() for table in tables] == [[2.0, 2.0], [5.0, 5.0]]
    assert set(filled.names) == {"fill_ cpu"}


def test_patches_are_grown_to_what_a_network_accepts() -> None:
    assert fit_patch("swin_unetr", (20, 32, 40)) == (32, 32, 64)
    assert fit_patch("plain_unet", (20, 32, 40)) == (20, 32, 40)


def test_an_unknown_network_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RunError, match="unet_tiny"):
        build_network(small("unet_tini", 3))


@pytest.mark.slow
def test_importing_all_networks_loads_no_heavy_library() -> None:
    code = "import sys, medkd.networks; print([m for m in ('monai', 'timm', 'torchvision') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize(
    "name", [name for name in NETWORKS if not name.startswith(("mednext_b", "mednext_m", "mednext_l"))]
)
def test_deep_supervision_is_published_by_those_that_offer_it(name: str, rank: int) -> None:
    entry = NETWORKS[name]
    if rank not in entry.ranks:
        pytest.skip(f"not in {rank}D")
    spec = replace(
        small(name, rank, patch=32), deep_supervision=True, architecture=architecture(rank) if entry.planned else None
    )
    if not entry.deep_supervision:
        with pytest.raises(RunError, match="deep supervision"):
            build_weightless(spec)
        return
    network = build_weightless(spec).train()
    logits = network(torch.empty(2, 1, *spec.patch_size, device="meta"))
    assert isinstance(logits, list) and len(logits) == len(network.deep_supervision_strides) > 1
    for scale, stride in zip(logits, network.deep_supervision_strides, strict=True):
        assert scale.shape[2:] == tuple(n // s for n, s in zip(spec.patch_size, stride, strict=True))
