"""MONAI's networks with any of their arguments, as teachers: built from an allow-list, their taps found by one
weightless pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from medkd.core.errors import RunError
from medkd.core.features import Stage, Tap
from medkd.core.run import NetworkSpec
from medkd.models.limits import check_argument, check_parameters, check_spec
from medkd.networks.base import SegmentationNetwork

CLASSES = ("SegResNet", "SwinUNETR", "UNet", "AttentionUnet", "DynUNet")
# the same networks in medkd's registry, which can also be continued from a tap
_REGISTERED: dict[str, tuple[str, dict[str, Any]]] = {
    "SegResNet": (
        "segresnet",
        {"spatial_dims": 3, "init_filters": 16, "blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1)},
    ),
    "SwinUNETR": ("swin_unetr", {"spatial_dims": 3, "feature_size": 48}),
}
# without influence on the result of a trained network
_NEUTRAL = ("img_size", "use_checkpoint", "dropout_prob", "drop_rate", "attn_drop_rate", "dropout_path_rate")
_FROM_DESCRIPTION = ("spatial_dims", "in_channels", "out_channels")
_SWIN_ENCODER = ("encoder1", "encoder2", "encoder3", "encoder4")
_SWIN_DECODER = ("decoder5", "decoder4", "decoder3", "decoder2", "decoder1")
Place = tuple[str, str, Stage]


class MonaiNetwork(SegmentationNetwork):
    """One of MONAI's networks (MONAI Consortium, arXiv 2211.02701) with the names of its parameters below ``net.``.

    Args:
        spec: channels, outputs and patch.
        kind: one of :data:`CLASSES`.
        arguments: keyword arguments of MONAI's constructor besides channels and dimensions; plain values.

    Raises:
        RunError: the class or an argument is unknown, or the network does not accept its arguments or the patch.
    """

    citation = "MONAI Consortium, arXiv 2211.02701"

    def __init__(self, spec: NetworkSpec, kind: str, arguments: Mapping[str, Any]) -> None:
        super().__init__(spec)
        check_arguments(kind, arguments, kind)
        check_spec(spec, f"MONAI's {kind}")
        try:
            check_parameters(_parameters(spec, kind, arguments), f"MONAI's {kind} with {dict(arguments)}")
            self.net: nn.Module = _build(spec, kind, arguments)
            weightless = deepcopy(self.net).eval().to("meta")
            self.taps = _taps(weightless, _places(kind, weightless), spec)
        except (
            TypeError,
            ValueError,
            RuntimeError,
            AttributeError,
            KeyError,
            IndexError,
            NotImplementedError,
        ) as error:
            detail = " ".join(str(error).split())
            raise RunError(
                f"MONAI's {kind} does not accept {dict(arguments)} with the patch {spec.patch_size}: {detail[:200]}"
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, K, *spatial)``."""
        return self.net(x)


def registered(kind: str, arguments: Mapping[str, Any], rank: int) -> str | None:
    """medkd's own name of the network that MONAI's class and arguments give, or None where it has none.

    An argument at MONAI's default says nothing.
    """
    if kind not in _REGISTERED or rank != 3:
        return None
    name, ours = _REGISTERED[kind]
    parameters = inspect.signature(_class(kind)).parameters
    given = {k: tuple_of(v) for k, v in arguments.items() if k not in (*_NEUTRAL, *_FROM_DESCRIPTION)}
    expected = {**{k: p.default for k, p in parameters.items() if k not in (*_NEUTRAL, *_FROM_DESCRIPTION)}, **ours}
    expected.pop("spatial_dims")
    found = {**{k: p.default for k, p in parameters.items() if k in expected}, **given}
    return name if {k: tuple_of(v) for k, v in expected.items()} == found else None


def check_arguments(kind: str, arguments: Mapping[str, Any], where: str) -> None:
    """Refuse classes that are not on the list, arguments that they do not have, and values that are more than data.

    Raises:
        RunError: one sentence that names the class or the argument.
    """
    if kind not in CLASSES:
        raise RunError(f"{where}: the network '{kind}' is not supported; medkd builds MONAI's {', '.join(CLASSES)}.")
    known = (*inspect.signature(_class(kind)).parameters, *_NEUTRAL)
    for name, value in arguments.items():
        if name not in known:
            raise RunError(f"{where}: MONAI's {kind} has no argument '{name}'.")
        if not _plain(value):
            raise RunError(f"{where}: {kind}'s argument '{name}' is not plain data; write its value into teacher.json.")
        check_argument(name, value, f"{where}: MONAI's {kind}")


def tuple_of(value: Any) -> Any:
    """Lists as tuples, at any depth."""
    return tuple(tuple_of(v) for v in value) if isinstance(value, (list, tuple)) else value


def _class(kind: str) -> type[nn.Module]:
    from monai.networks import nets

    return getattr(nets, kind)


def _build(spec: NetworkSpec, kind: str, arguments: Mapping[str, Any]) -> nn.Module:
    network = _class(kind)
    accepted = inspect.signature(network).parameters
    size = {"img_size": spec.patch_size} if "img_size" in accepted else {}
    given = {
        k: tuple_of(v) for k, v in arguments.items() if k in accepted and k not in ("img_size", *_FROM_DESCRIPTION)
    }
    if "deep_supervision" in given:
        given["deep_supervision"] = bool(given["deep_supervision"])
    return network(
        **size, **given, spatial_dims=len(spec.patch_size), in_channels=spec.in_channels, out_channels=spec.num_outputs
    )  # fmt: skip


def _parameters(spec: NetworkSpec, kind: str, arguments: Mapping[str, Any]) -> float:
    """How many weights a network is going to have, without memory for them."""
    if kind == "SwinUNETR":  # its constructor needs values; twelve square matrices per block, eight times the features
        features, depths = arguments.get("feature_size", 24), arguments.get("depths", (2, 2, 2, 2))
        return float(12 * (8 * features) ** 2 * sum(depths))
    with torch.device("meta"):
        return float(sum(weight.numel() for weight in _build(spec, kind, arguments).parameters()))


def _plain(value: Any) -> bool:
    if isinstance(value, str):
        return not value.startswith(("$", "@", "%"))
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and not k.startswith("_") and _plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float))


def _places(kind: str, network: Any) -> list[Place]:
    """Where the features of a network lie: name, module path, stage; encoder, bottleneck, decoder from coarse to
    fine.
    """
    if kind == "SegResNet":
        encoder = [f"down_layers.{i}.{len(layer) - 1}" for i, layer in enumerate(network.down_layers)]
        return _named(encoder, [f"up_layers.{i}.{len(layer) - 1}" for i, layer in enumerate(network.up_layers)])
    if kind == "SwinUNETR":
        return _named([*_SWIN_ENCODER, "encoder10"], _SWIN_DECODER)
    if kind == "DynUNet":
        encoder = ["input_block", *(f"downsamples.{i}" for i in range(len(network.downsamples))), "bottleneck"]
        return _named(encoder, [f"upsamples.{i}" for i in range(len(network.upsamples))])
    if kind == "UNet":
        steps = len(network.channels) - 1
        stages = ["model" + ".1.submodule" * i for i in range(steps + 1)]
        # the finest decoder step yields the logits
        return _named([*(f"{s}.0" for s in stages[:-1]), stages[-1]], [f"{s}.2" for s in stages[-2:0:-1]], finest=1)
    return _attention(network)


def _attention(network: Any) -> list[Place]:
    encoder, decoder, layer, path = ["model.0"], [], network.model[1], "model.1"
    while True:
        decoder.append(f"{path}.merge")
        inner = layer.submodule
        if not isinstance(inner, nn.Sequential) or not hasattr(inner[1], "merge"):
            return _named([*encoder, f"{path}.submodule"], decoder[::-1])
        encoder.append(f"{path}.submodule.0")
        layer, path = inner[1], f"{path}.submodule.1"


def _named(encoder: Sequence[str], decoder: Sequence[str], finest: int = 0) -> list[Place]:
    places: list[Place] = [(f"enc{i}", path, "encoder") for i, path in enumerate(encoder[:-1])]
    places.append(("bottleneck", encoder[-1], "bottleneck"))
    return [*places, *((f"dec{finest + len(decoder) - 1 - i}", path, "decoder") for i, path in enumerate(decoder))]


def _taps(network: nn.Module, places: Sequence[Place], spec: NetworkSpec) -> tuple[Tap, ...]:
    """Channels, strides and shapes of the places, read off one pass of a network on ``meta``."""
    shapes: dict[str, tuple[torch.Size, bool]] = {}
    handles = []
    for name, path, _ in places:

        def note(_: nn.Module, inputs: tuple[Any, ...], output: Tensor, name: str = name) -> None:
            first = inputs[0] if len(inputs) == 1 else None
            shapes[name] = output.shape, isinstance(first, Tensor) and first.shape == output.shape

        handles.append(network.get_submodule(path).register_forward_hook(note))
    try:
        with torch.no_grad():
            network(torch.zeros((1, spec.in_channels, *spec.patch_size), device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for name, path, stage in places:
        shape, same = shapes[name]
        if any(p % s for p, s in zip(spec.patch_size, shape[2:], strict=True)):
            raise ValueError(f"the patch is not a multiple of the feature map {tuple(shape[2:])} at {path}")
        stride = tuple(p // s for p, s in zip(spec.patch_size, shape[2:], strict=True))
        found.append(
            Tap(name=name, channels=shape[1], stride=stride, module=f"net.{path}", stage=stage, correction=same)
        )
    return tuple(found)
