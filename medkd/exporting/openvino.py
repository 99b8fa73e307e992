"""Networks as OpenVINO's intermediate representation, weights in half precision; computed in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from medkd.core.errors import RunError
from medkd.core.files import atomic_path, scratch_folder
from medkd.models.onnx import export_onnx


def export_openvino(networks: Sequence[nn.Module], channels: int, patch_size: Sequence[int], path: Path) -> None:
    """Write networks as ``path`` (``*.xml``) and the weights beside it (``*.bin``, fp16).

    Args:
        networks: see :func:`~medkd.models.onnx.export_onnx`.
        channels: of the image.
        patch_size: fixed in the graph; the number of patches is free.
        path: ``*.xml``.

    Raises:
        RunError: OpenVINO is not installed, or the network cannot be expressed.
    """
    try:
        import openvino
    except ImportError as error:
        raise RunError("Export to OpenVINO needs the package openvino: pip install 'medkd[export]'.") from error
    with scratch_folder(path.parent) as scratch:
        graph, made = scratch / "model.onnx", scratch / "model.xml"
        export_onnx(networks, channels, patch_size, graph)
        openvino.save_model(openvino.convert_model(str(graph)), str(made), compress_to_fp16=True)
        for suffix in (".bin", ".xml"):
            with atomic_path(path.with_suffix(suffix)) as temporary:
                temporary.write_bytes(made.with_suffix(suffix).read_bytes())
