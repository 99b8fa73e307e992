"""Static quantisation of network files: of ``model.onnx`` by ONNX Runtime, of OpenVINO's ``model.xml`` by NNCF.

Weights get a scale per output channel, in ONNX Runtime as QDQ. What enters a quantised convolution is quantised, what
leaves it is not: behind it there is a norm or an activation in float, whose input would be rounded for nothing (NNCF
would quantise instance norms by itself, which costs more Dice than all convolutions).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.errors import RunError
from medkd.models.onnx import quiet
from medkd.runtime.signal_stack import kept_signal_stack

_CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData")  # of OpenVINO
_NO_LAYERS = ("Constant", "Parameter", "Result")


def convolutions(network: Path) -> list[str]:
    """Names of a network's convolutions that can be quantised, in the order in which they are computed; in ONNX Runtime
    without transposed ones.

    Raises:
        RunError: the packages that quantise are not installed.
    """
    return _openvino_convolutions(network) if network.suffix == ".xml" else _onnx_convolutions(network)


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
