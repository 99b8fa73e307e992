"""Networks as ONNX graphs: image in, logits out, for any number of patches at a time."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medkd.core.errors import RunError
from medkd.core.files import atomic_path, refusal_in
from medkd.models.operators import exportable_operators

OPSET = 18
"""Of ONNX: the oldest that torch's exporter writes without conversion; ONNX Runtime reads it since 1.14."""


class MeanOfNetworks(nn.Module):
    """The networks of several folds as one: the mean of their logits."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, *patch) → (B, K, *patch)``."""
        total = self.networks[0](image)
        for network in self.networks[1:]:
            total = total + network(image)
        return total / len(self.networks) if len(self.networks) > 1 else total


def export_onnx(networks: Sequence[nn.Module], channels: int, patch_size: Sequence[int], path: Path) -> None:
    """Write networks as one ONNX file with the input ``image`` and the output ``logits``.

    Args:
        networks: in evaluation mode, on the CPU; the file gives the mean of their logits.
        channels: of the image.
        patch_size: fixed in the graph; the number of patches is free.
        path: ``*.onnx``.

    Raises:
        RunError: the exporter is not installed, or cannot express one of the network's operators.
    """
    joined = MeanOfNetworks(networks).eval()
    write_graph(joined, torch.zeros(2, channels, *patch_size), ["logits"], path)


def write_graph(
    network: nn.Module, sample: Tensor, outputs: Sequence[str], path: Path, *, single: bool = False
) -> None:
    """Write a module as an ONNX file with the input ``image``, whose first axis is free.

    Args:
        network: in evaluation mode, on the CPU; its forward has one argument, ``image``.
        sample: an input of at least two items.
        outputs: names of what it returns.
        path: ``*.onnx``.
        single: the first axis is 1, and shapes inside may depend on values; what traces such networks is torch's older
            exporter.

    Raises:
        RunError: see :func:`export_onnx`.
    """
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it, and says so in a page of text)
    except ImportError as error:
        raise RunError("Export needs the packages onnx and onnxscript: pip install 'medkd[export]'.") from error
    settings: dict[str, Any] = {"dynamo": False}
    if not single:
        free = {"image": {0: torch.export.Dim("batch", min=1, max=1024)}}
        settings = {"dynamo": True, "dynamic_shapes": free, "external_data": False}
    with atomic_path(path) as temporary, quiet(), exportable_operators(), torch.no_grad():
        try:
            torch.onnx.export(
                network,
                (sample,),
                str(temporary),
                input_names=["image"],
                output_names=list(outputs),
                opset_version=OPSET,
                **settings,
            )
        except Exception as error:
            if refusal_in(error) is not None:
                raise
            names = ", ".join(sorted({type(part).__name__ for part in _parts(network)}))
            raise RunError(
                f"{names} cannot be written as ONNX: {type(error).__name__}: {_first_line(error)}; choose another "
                "network for the student, or export with --format folder."
            ) from error


def _parts(network: nn.Module) -> Sequence[nn.Module]:
    """The networks inside of a wrapper."""
    return list(network.networks) if isinstance(network, MeanOfNetworks) else list(network.children())


def _first_line(error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return lines[0][:200]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's pages of advice on standard output and in logs."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
