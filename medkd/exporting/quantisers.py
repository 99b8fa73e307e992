"""Static quantisation of network files: of ``model.onnx`` by ONNX Runtime, of OpenVINO's ``model.xml`` by NNCF.

Weights get a scale per output channel, in ONNX Runtime as QDQ. What enters a quantised convolution is quantised, what
leaves it is not: behind it there is a norm or an activation in float, whose input would be rounded for nothing (NNCF
would quantise instance norms by itself, which costs more Dice than all convolutions).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.errors import RunError
from medkd.models.onnx import quiet
from medkd.runtime.signal_stack import kept_signal_stack

_CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData")  # of OpenVINO
_MIXING = (*_CONVOLUTIONS, "Conv", "ConvTranspose", "MatMul", "Gemm")  # of both
_SHAPES = ("Shape", "Size", "ShapeOf")  # of both; what they say of a layer is none of its values
_IMAGE = "image"
_NO_LAYERS = ("Constant", "Parameter", "Result")


def convolutions(network: Path) -> list[str]:
    """Names of a network's convolutions that can be quantised, in the order in which they are computed; in ONNX Runtime
    without transposed ones.

    Raises:
        RunError: the packages that quantise are not installed.
    """
    return _openvino_convolutions(network) if network.suffix == ".xml" else _onnx_convolutions(network)


def ends(network: Path) -> list[str]:
    """Names of the convolutions that see the image itself, and of those that make the logits: of the mean of several
    folds those of each.
    """
    layers = _openvino_layers(network) if network.suffix == ".xml" else _onnx_layers(network)
    return [*_first(layers), *_last(layers)]


def _first(layers: Sequence[_Layer]) -> list[str]:
    """What mixes the channels of the image, before anything else did."""
    reached, found = {_IMAGE}, []
    for layer in layers:
        if layer.data & reached:
            if layer.mixes:
                found.append(layer.name)
            else:
                reached.add(layer.name)
    return found


def _last(layers: Sequence[_Layer]) -> list[str]:
    """What mixes channels, and nothing behind it does."""
    wanted = {layer.name for layer in layers}.difference(*(layer.data for layer in layers))
    found = []
    for layer in reversed(layers):
        if layer.name in wanted:
            if layer.mixes:
                found.append(layer.name)
            else:
                wanted |= layer.data
    return found


def write_int8(network: Path, target: Path, patches: Sequence[np.ndarray], in_float: Collection[str]) -> None:
    """Write a network with quantised convolutions.

    Args:
        network: ``*.onnx``, or ``*.xml`` with its ``*.bin``.
        target: of the same kind.
        patches: ``(1, C, *patch)`` each, that give the ranges of activations.
        in_float: convolutions that are not quantised.
    """
    write = _write_openvino if network.suffix == ".xml" else _write_onnx
    with quiet():
        write(network, target, patches, in_float)


@dataclass(frozen=True)
class _Layer:
    """A layer, the layers whose outputs enter it as data (the image is one of them), and whether it mixes channels by
    weights.
    """

    name: str
    data: frozenset[str]
    mixes: bool


def _onnx_layers(network: Path) -> list[_Layer]:
    """In the order in which they are computed."""
    import onnx

    graph = onnx.load(network).graph
    made_by = dict.fromkeys([value.name for value in graph.input], _IMAGE)
    layers = []
    for node in graph.node:
        mixes = node.op_type in _MIXING
        entering = node.input[:1] if mixes else node.input
        data = frozenset(made_by[name] for name in entering if name in made_by)
        if data and node.op_type not in _SHAPES:  # the others compute with constants
            layers.append(_Layer(node.name, data, mixes))
            made_by.update(dict.fromkeys(node.output, node.name))
    return layers


def _openvino_layers(network: Path) -> list[_Layer]:
    """In the order in which they are computed, without what stands for the output."""
    import openvino

    made_by: dict[str, str] = {}
    layers = []
    for part in openvino.Core().read_model(str(network)).get_ordered_ops():
        name, kind = part.get_friendly_name(), part.get_type_name()
        mixes = kind in _MIXING
        entering = part.input_values()[:1] if mixes else part.input_values()
        sources = [value.get_node().get_friendly_name() for value in entering]
        data = frozenset(made_by[source] for source in sources if source in made_by)
        if kind == "Parameter":
            made_by[name] = _IMAGE
        elif data and kind not in ("Result", *_SHAPES):
            layers.append(_Layer(name, data, mixes))
            made_by[name] = name
    return layers


def _onnx_convolutions(network: Path) -> list[str]:
    try:
        import onnx
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise RunError("--int8 needs the packages onnx and onnxruntime: pip install 'medkd[export]'.") from error
    return [node.name for node in onnx.load(network).graph.node if node.op_type == "Conv"]


def _write_onnx(network: Path, target: Path, patches: Sequence[np.ndarray], in_float: Collection[str]) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Gives one patch after the other."""

        def __init__(self) -> None:
            self._patches: Iterator[np.ndarray] = iter(patches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            """The next input, or None."""
            patch = next(self._patches, None)
            return None if patch is None else {"image": patch}

    options: dict[str, Any] = {"per_channel": True, "op_types_to_quantize": ["Conv"]}
    quantization.quantize_static(
        network,
        target,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=list(in_float),
        extra_options={"OpTypesToExcludeOutputQuantization": ["Conv"]},
        **options,
    )


def _openvino_convolutions(network: Path) -> list[str]:
    try:
        import nncf  # noqa: F401
        import openvino
    except ImportError as error:
        raise RunError(
            "--int8 of OpenVINO needs the packages nncf and openvino: pip install 'medkd[export]'."
        ) from error
    found = []
    for part in openvino.Core().read_model(str(network)).get_ordered_ops():
        if part.get_type_name() in _CONVOLUTIONS:
            found.append(part.get_friendly_name())
    return found


def _write_openvino(network: Path, target: Path, patches: Sequence[np.ndarray], in_float: Collection[str]) -> None:
    import nncf
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level also sets whatever handler hangs there
    model = openvino.Core().read_model(str(network))
    others = {part.get_type_name() for part in model.get_ordered_ops()} - {*_CONVOLUTIONS, *_NO_LAYERS}
    ignored = nncf.IgnoredScope(names=list(in_float), types=sorted(others), validate=False)
    with kept_signal_stack():
        made = nncf.quantize(
            model,
            nncf.Dataset(list(patches)),
            subset_size=len(patches),
            preset=nncf.QuantizationPreset.MIXED,  # activations below zero are few behind a leaky ReLU: keep theirs
            ignored_scope=ignored,
        )
    openvino.save_model(made, str(target), compress_to_fp16=True)
