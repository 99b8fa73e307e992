"""The last layer that is computed once for a scan gives the logits that it gave tile by tile, and takes less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.live_memory import LivePeak
from medkd.core.run import NetworkSpec
from medkd.inference import export
from medkd.inference import predictor as predictor_module
from medkd.inference.late_head import LateHead
from medkd.inference.predictor import Predictor, Settings
from medkd.models.weights import freeze
from medkd.networks import NETWORKS, build_network
from medkd.networks.plain_unet import PlainUNet
from medkd.networks.reference import build_weightless, reference_spec
from tests.inference.conftest import tiny_plan
from tests.networks.checks import architecture, small

MANY = LabelSpec.from_names([f"structure {number}" for number in range(11)])
GRID = Geometry.from_spacing((40, 30, 25), (2.0, 1.0, 1.1))


def _kinds() -> list[tuple[str, int]]:
    return [(name, rank) for name in NETWORKS for rank in NETWORKS[name].ranks]


def _last_convolution(net: nn.Module, x: Tensor) -> str:
    """Path of the convolution of one voxel whose result is the network's, looked for in a pass; else nothing."""
    given: dict[str, Tensor] = {}
    for path, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)) and set(module.kernel_size) == {1}:
            module.register_forward_hook(lambda _m, _i, output, path=path: given.update({path: output}))
    with torch.no_grad():
        logits = net(x)
    return next((path for path, output in given.items() if output is logits), "")


@pytest.mark.parametrize(("name", "rank"), _kinds())
def test_networks_name_their_last_layer_where_it_is_a_product(name: str, rank: int) -> None:
    net = build_weightless(reference_spec(name, rank)).eval()
    x = torch.empty(1, net.spec.in_channels, *net.spec.patch_size, device="meta")
    assert net.head_path == _last_convolution(net, x)


def _network(name: str, rank: int, outputs: int = 70) -> Any:
    if NETWORKS[name].planned:
        return freeze(build_network(small(name, rank, outputs=outputs, patch=8, architecture=architecture(rank))))
    return freeze(build_network(small(name, rank, outputs=outputs, patch=2 * NETWORKS[name].divisor)))


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", ["plain_unet", "resenc_unet_m", "lcov_net", "attention_unet", "segresnet"])
def test_features_and_the_last_layer_are_the_network(name: str, rank: int) -> None:
    net = _network(name, rank)
    x = torch.randn(2, 1, *net.spec.patch_size)
    head = LateHead.of([net])
    assert head is not None
    with torch.inference_mode():
        features, expected = head.features(x), net(x)
    assert features.shape[1] == head.channels < 70
    torch.testing.assert_close(head.logits(features[1]), expected[1], atol=1e-5, rtol=1e-5)


def test_several_networks_give_the_mean_of_their_logits() -> None:
    nets = [_network("plain_unet", 3), _network("plain_unet", 3)]
    x = torch.randn(1, 1, 8, 8, 8)
    head = LateHead.of(nets)
    assert head is not None and head.channels == 16
    with torch.inference_mode():
        single = [net(x)[0] for net in nets]
        torch.testing.assert_close(head.logits(head.features(x)[0]), (single[0] + single[1]) / 2, atol=1e-5, rtol=1e-5)
    assert (single[0] - single[1]).abs().max() > 0.1


def test_networks_stay_as_they_are_and_new_weights_count() -> None:
    net = _network("plain_unet", 2)
    x = torch.randn(1, 1, 8, 8)
    before = LateHead.of([net])
    for weight in net.parameters():
        weight.mul_(-0.5).add_(0.01)
    head = LateHead.of([net])
    assert head is not None and before is not None and not torch.equal(head.weight, before.weight)
    with torch.no_grad():
        assert net(x).shape[1] == 70
        torch.testing.assert_close(head.logits(head.features(x)[0]), net(x)[0], atol=1e-5, rtol=1e-5)


class Bounded(PlainUNet):
    """Another's network, which does more after the last layer."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        logits = super().forward(x)
        assert isinstance(logits, Tensor)
        return logits.clamp(-0.1, 0.1)


class Normed(PlainUNet):
    """Another's network with another head."""

    def head(self, index: int, x: Tensor) -> Tensor:
        return functional.normalize(super().head(index, x))


class Cosine(nn.Conv3d):
    """Not what its kind computes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.normalize(x))


@pytest.mark.parametrize("kind", [Bounded, Normed])
def test_networks_that_do_more_after_the_layer_keep_it(kind: type[PlainUNet], monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = _predictor(3)
    before = predictor.predict_case(*_scan(), "a")
    predictor.networks[0].__class__ = kind
    assert LateHead.of(predictor.networks) is None
    assert np.mean(predictor.predict_case(*_scan(), "a") != before) > 0.01


def test_what_is_not_known_to_be_the_last_layer_is_left_alone() -> None:
    net = _network("plain_unet", 3)
    net.get_submodule(net.head_path).__class__ = Cosine
    assert LateHead.of([net]) is None
    net = _network("plain_unet", 3)
    net.head_path = "classify"
    assert LateHead.of([net]) is None
    net = _network("plain_unet", 3)
    net.forward = lambda x: type(net).forward(net, x).relu()
    assert LateHead.of([net]) is None


def test_time_is_spared_where_features_are_far_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    faster = {}
    for outputs in (13, 14):
        head = LateHead.of([_network("plain_unet", 2, outputs=outputs)])
        assert head is not None
        faster[outputs] = head.is_faster
    assert faster == {13: False, 14: True}
    predictor = _predictor(3, LabelSpec.from_names(["1", "2", "3", "4"]))  # five outputs of four features
    expected = predictor.predict_case(*_scan(), "a")
    used: list[int] = []
    logits = LateHead.logits
    monkeypatch.setattr(LateHead, "logits", lambda self, x: used.append(1) or logits(self, x))
    assert np.array_equal(predictor.predict_case(*_scan(), "a"), expected) and not used
    monkeypatch.setattr(predictor_module, "WHOLE_BYTES", 0)
    assert np.mean(predictor.predict_case(*_scan(), "a") != expected) < 1e-4 and used


def test_nothing_is_left_for_later_where_it_does_not_pay_or_is_looked_at() -> None:
    assert LateHead.of([_network("plain_unet", 2, outputs=8)]) is None  # as many features
    assert LateHead.of([_network("plain_unet", 2, outputs=9)]) is not None
    assert LateHead.of([_network("plain_unet", 2, outputs=9)] * 2) is None
    assert LateHead.of([_network("plain_unet", 2), _network("unet_tiny", 2)]) is None
    assert LateHead.of([nn.Conv3d(1, 70, 1)]) is None
    for path in ("", "net.decoder", "net.decoder.seg_layers.1"):
        net = _network("plain_unet", 2)
        net.get_submodule(path).register_forward_hook(lambda *_: None)
        assert LateHead.of([net]) is None, path


def _predictor(rank: int, labels: LabelSpec = MANY, networks: int = 1) -> Predictor:
    """Of random networks with four features each, all of whose classes occur."""
    plan = tiny_plan(rank, spacing=1.5)
    configuration = next(iter(plan.configurations.values()))
    shape = configuration.architectures["plain_unet"]
    spec = NetworkSpec(
        name="plain_unet", in_channels=1, num_outputs=labels.num_outputs, patch_size=(16,) * rank, architecture=shape
    )
    nets = [freeze(build_network(spec)) for _ in range(networks)]
    for net in nets:
        nn.init.normal_(net.get_submodule(net.head_path).bias)
    return Predictor(nets, plan, configuration, labels, (16,) * rank, mirror_axes=(0, 1), device="cpu")


def _scan() -> tuple[np.ndarray, Geometry]:
    return np.random.default_rng(0).normal(size=(1, *GRID.shape)).astype(np.float32), GRID


def _both(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """The label map of a random scan without and with a late head."""
    found = predictor.predict_case(*_scan(), "a")
    monkeypatch.setattr(LateHead, "of", lambda networks: None)
    return predictor.predict_case(*_scan(), "a"), found


@pytest.mark.parametrize("whole", [0, 2**28])
@pytest.mark.parametrize(("rank", "networks"), [(2, 1), (3, 1), (3, 2)])
def test_label_maps_are_the_same(rank: int, networks: int, whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "WHOLE_BYTES", whole)
    torch.manual_seed(rank)
    predictor = _predictor(rank, networks=networks)
    assert LateHead.of(predictor.networks) is not None
    expected, found = _both(predictor, monkeypatch)
    assert len(np.unique(expected)) > 2 and np.mean(found != expected) < 1e-4


@pytest.mark.parametrize(("orders", "precision"), [((3, 3), "fp32"), ((1, 0), "bf16")])
def test_other_interpolations_and_half_precision(
    orders: tuple[int, int], precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    predictor = _predictor(3)
    order, order_z = orders
    rule = replace(predictor.configuration.resampling, logits_order=order, logits_order_z=order_z)
    predictor.configuration, predictor.precision = replace(predictor.configuration, resampling=rule), precision
    expected, found = _both(predictor, monkeypatch)
    assert len(np.unique(expected)) > 2 and np.mean(found != expected) < (1e-4 if precision == "fp32" else 0.02)


def test_regions_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [(f"part {number}", (number,)) for number in range(1, 6)]
    regions = LabelSpec(
        (("background", (0,)), ("whole", (1, 2, 3, 4, 5)), *parts), regions=True, order=(1, *range(1, 6))
    )
    torch.manual_seed(0)
    expected, found = _both(_predictor(3, regions), monkeypatch)
    assert len(np.unique(expected)) >= 2 and np.mean(found != expected) < 1e-4


def test_memory_hardly_grows_with_the_number_of_structures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles and the row that is held have the features; a further structure costs a few slices."""
    monkeypatch.setattr(predictor_module, "WHOLE_BYTES", 0)
    monkeypatch.setattr(export, "SLAB_BYTES", 1)
    peaks = {}
    for structures in (20, 80):
        predictor = _predictor(3, LabelSpec.from_names([str(number) for number in range(structures)]))
        with LivePeak() as live:
            predictor.predict_case(*_scan(), "a")
        peaks[structures] = live.highest
    row = 4 * 16 * 20 * 17  # bytes of an output in the slices of a row of tiles, at 1.5 mm
    assert peaks[80] - peaks[20] < 60 * row / 2


def test_weights_that_are_not_numbers_are_still_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = _predictor(3)
    predictor.networks[0].get_submodule("net.decoder.seg_layers.0").weight[5] = float("nan")
    for whole in (0, 2**28):
        monkeypatch.setattr(predictor_module, "WHOLE_BYTES", whole)
        with pytest.raises(Exception, match="values that are not finite"):
            predictor.predict_case(np.ones((1, *GRID.shape), np.float32), GRID, "a")


def test_settings_reach_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    predictor = _predictor(3)
    predictor.settings = Settings(step_size=1.0, mirror=False)
    seen: list[dict[str, Any]] = []
    plain = predictor_module.predict_logits
    monkeypatch.setattr(
        predictor_module, "predict_logits", lambda *more, **settings: seen.append(settings) or plain(*more, **settings)
    )
    expected, found = _both(predictor, monkeypatch)
    assert np.mean(found != expected) < 1e-4
    assert len(seen) == 2 and seen[0] == seen[1] and seen[0]["step_size"] == 1.0 and seen[0]["mirror_axes"] == ()
