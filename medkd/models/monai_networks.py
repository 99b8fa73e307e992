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
from medkd.networks.encoder_decoder import numbered
from medkd.networks.reference import without_memory

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
                f"MONAI's {kind} does not accept {dict(arguments)!s:.300} with the patch {spec.patch_size}: "
                f"{detail[:200]}"
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
    defaults = _defaults(kind)
    expected = defaults | ours
    expected.pop("spatial_dims", None)
    found = {}
    for argument, default in defaults.items():
        if argument in expected:
            found[argument] = default
    for argument, value in arguments.items():
        if argument not in (*_NEUTRAL, *_FROM_DESCRIPTION):
            found[argument] = tuple_of(value)
    return name if tuple_of_each(expected) == found else None


def _defaults(kind: str) -> dict[str, Any]:
    """The arguments of a class that say what the network is, with their defaults."""
    found = {}
    for name, parameter in inspect.signature(_class(kind)).parameters.items():
        if name not in (*_NEUTRAL, *_FROM_DESCRIPTION):
            found[name] = parameter.default
    return found


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
    if isinstance(value, (list, tuple)):
        return tuple(map(tuple_of, value))
    return value


def tuple_of_each(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with lists as tuples."""
    return {name: tuple_of(value) for name, value in values.items()}


def _class(kind: str) -> type[nn.Module]:
    from monai.networks import nets

    return getattr(nets, kind)


def _build(spec: NetworkSpec, kind: str, arguments: Mapping[str, Any]) -> nn.Module:
    network: Any = _class(kind)
    accepted = inspect.signature(network).parameters
    given: dict[str, Any] = {}
    if "img_size" in accepted:
        given["img_size"] = spec.patch_size
    for name, value in arguments.items():
        if name in accepted and name not in ("img_size", *_FROM_DESCRIPTION):
            given[name] = tuple_of(value)
    if "deep_supervision" in given:
        given["deep_supervision"] = bool(given["deep_supervision"])
    given["spatial_dims"] = len(spec.patch_size)
    return network(in_channels=spec.in_channels, out_channels=spec.num_outputs, **given)


def _parameters(spec: NetworkSpec, kind: str, arguments: Mapping[str, Any]) -> float:
    """How many weights a network is going to have, without memory for them."""
    if kind == "SwinUNETR":  # its constructor needs values; twelve square matrices per block, eight times the features
        features = 8 * arguments.get("feature_size", 24)
        blocks = sum(arguments.get("depths", (2, 2, 2, 2)))
        return float(12 * features**2 * blocks)
    with without_memory():
        network = _build(spec, kind, arguments)
    return float(sum(weight.numel() for weight in network.parameters()))


def _plain(value: Any) -> bool:
    if isinstance(value, str):
        return not value.startswith(("$", "@", "%"))
    if isinstance(value, Mapping):
        return all(map(_plain_key, value)) and all(map(_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float))


def _plain_key(key: Any) -> bool:
    return isinstance(key, str) and not key.startswith("_")


def _places(kind: str, network: Any) -> list[Place]:
    """Where the features of a network lie: name, module path, stage; encoder, bottleneck, decoder from coarse to
    fine.
    """
    finders = {"SegResNet": _segresnet, "DynUNet": _dynunet, "UNet": _unet, "AttentionUnet": _attention}
    if kind == "SwinUNETR":
        return _named([*_SWIN_ENCODER, "encoder10"], _SWIN_DECODER)
    return finders[kind](network)


def _segresnet(network: Any) -> list[Place]:
    down = _last_blocks("down_layers", network.down_layers)
    return _named(down, _last_blocks("up_layers", network.up_layers))


def _last_blocks(path: str, stages: Any) -> list[str]:
    return [f"{path}.{i}.{len(stage) - 1}" for i, stage in enumerate(stages)]


def _dynunet(network: Any) -> list[Place]:
    downsamples = numbered("downsamples", len(network.downsamples))
    upsamples = numbered("upsamples", len(network.upsamples))
    return _named(["input_block", *downsamples, "bottleneck"], upsamples)


def _unet(network: Any) -> list[Place]:
    encoder = []
    decoder = []
    stage = "model"
    for _ in network.channels[:-1]:
        encoder.append(f"{stage}.0")
        decoder.append(f"{stage}.2")
        stage = f"{stage}.1.submodule"
    # the finest decoder step yields the logits
    return _named([*encoder, stage], decoder[:0:-1], finest=1)


def _attention(network: Any) -> list[Place]:
    encoder = ["model.0"]
    decoder = []
    path = "model.1"
    layer = network.model[1]
    while True:
        decoder.append(f"{path}.merge")
        inner = layer.submodule
        if not isinstance(inner, nn.Sequential) or not hasattr(inner[1], "merge"):
            return _named([*encoder, f"{path}.submodule"], decoder[::-1])
        encoder.append(f"{path}.submodule.0")
        path = f"{path}.submodule.1"
        layer = inner[1]


def _named(encoder: Sequence[str], decoder: Sequence[str], finest: int = 0) -> list[Place]:
    *skips, deepest = encoder
    places: list[Place] = []
    for level, path in enumerate(skips):
        places.append((f"enc{level}", path, "encoder"))
    places.append(("bottleneck", deepest, "bottleneck"))
    level = finest + len(decoder)
    for path in decoder:
        level -= 1
        places.append((f"dec{level}", path, "decoder"))
    return places


def _taps(network: nn.Module, places: Sequence[Place], spec: NetworkSpec) -> tuple[Tap, ...]:
    """Channels, strides and shapes of the places, read off one pass of a network on ``meta``."""
    shapes: dict[str, tuple[torch.Size, bool]] = {}
    handles = []
    for name, path, _ in places:

        def note(_: nn.Module, inputs: tuple[Any, ...], output: Tensor, name: str = name) -> None:
            first = inputs[0] if len(inputs) == 1 else None
            same = isinstance(first, Tensor) and first.shape == output.shape
            shapes[name] = output.shape, same

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
        found.append(
            Tap(
                name=name,
                channels=shape[1],
                stride=_stride(spec.patch_size, shape[2:], path),
                module=f"net.{path}",
                stage=stage,
                correction=same,
            )
        )
    return tuple(found)


def _stride(patch: tuple[int, ...], size: Sequence[int], path: str) -> tuple[int, ...]:
    stride = []
    for voxels, cells in zip(patch, size, strict=True):
        if voxels % cells:
            raise ValueError(f"the patch is not a multiple of the feature map {tuple(size)} at {path}")
        stride.append(voxels // cells)
    return tuple(stride)
