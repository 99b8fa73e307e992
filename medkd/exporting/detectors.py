"""Detectors as ONNX: a letterboxed radiograph in, boxes, scores and those that survive non-maximum suppression out.

For detectors with a dense head (YOLO and the one-stage ones of torchvision). ``detection.json`` says how a radiograph
becomes the input and what the outputs mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medkd import __version__
from medkd.core.checkpoint import weights_digest
from medkd.core.errors import RunError
from medkd.core.files import scratch_folder, write_json, write_text
from medkd.exporting.onnx import write_graph
from medkd.exporting.output import check_output, put_in_place
from medkd.models.base import Checkpoint, open_model
from medkd.runtime.engines import open_engine
from medkd.runtime.package import RECORD

DESCRIPTION = "detection.json"
SCORE = 0.001
MOST = 300
_PIXELS = 0.05  # by which a box may differ, of rounding
_SCORES = 1e-3


@dataclass(frozen=True)
class DetectorParity:
    """Largest differences between the exported detector and the original, on images of noise.

    Attributes:
        pixels: of a box's side, in pixels of the input.
        score: of a class's score.
    """

    pixels: float
    score: float


class DenseOutputs(nn.Module):
    """A dense detector whose outputs are tensors: boxes ``(B, A, 4)`` and scores ``(B, K, A)``."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, 3, S, S)`` in [0, 1] → boxes in input pixels, and scores."""
        outputs: Any = self.detector.observe(image, None)  # type: ignore[operator]
        return outputs.boxes, outputs.logits.sigmoid()


def export_detector(
    model: Path | str,
    output: Path,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint: Checkpoint = "final",
    overwrite: bool = False,
) -> DetectorParity:
    """Export one fold of a detector to ONNX, and prove that its boxes and scores are the same.

    Args:
        model: run folder of a detector, or its weights.
        output: folder to be made.
        folds: the fold; may be None where there is only one.
        checkpoint: ``"final"`` or ``"best"``.
        overwrite: replace an exported model that is there.

    Raises:
        RunError: there are several folds, the detector has no dense head or cannot be expressed, the output is in use,
            or the exported detector finds other boxes.
    """
    output = Path(output)
    check_output(output, overwrite)
    source = open_model(model, "detection")
    loaded = source.load(folds, checkpoint=checkpoint)
    detector = loaded.networks[0]
    if len(loaded.networks) > 1:
        raise RunError(
            f"{model} has the folds {', '.join(loaded.folds)}; an exported detector is one, give it with -f."
        )
    if detector.two_stage or detector.end_to_end:
        raise RunError(
            f"{detector.spec.name} has no dense head whose boxes ONNX could suppress; pack it with --format folder."
        )
    described = _described(source.name, detector, loaded.folds)
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(output.parent) as scratch:
        folder = scratch / "exported"
        folder.mkdir()
        parity = _fill(folder, detector, described)
        put_in_place(folder, output)
    return parity


def _fill(folder: Path, detector: Any, described: dict[str, Any]) -> DetectorParity:
    size, graph = detector.spec.image_size, folder / "model.onnx"
    joined = DenseOutputs(detector).eval()
    write_graph(joined, torch.zeros(2, 3, size, size), ["boxes", "scores"], graph)
    parity = _compare(joined, graph, size)
    _add_suppression(graph, described["overlap"])
    write_json(folder / DESCRIPTION, described)
    write_json(folder / RECORD, {"format": "onnx", "made_from": described["made_from"], "parity": vars(parity)})
    write_text(folder / "README.md", _card(described))
    return parity


def _compare(joined: DenseOutputs, graph: Path, size: int) -> DetectorParity:
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        boxes, scores = (value.numpy() for value in joined(images))
    engine = open_engine(graph, "onnxruntime", every=True)
    theirs = engine(images.numpy())
    parity = DetectorParity(float(np.abs(boxes - theirs[0]).max()), float(np.abs(scores - theirs[1]).max()))
    if not (parity.pixels <= _PIXELS and parity.score <= _SCORES):
        raise RunError(
            f"The exported detector finds other boxes than the model (by up to {parity.pixels:.2g} pixels, scores by "
            f"{parity.score:.2g}); nothing was exported."
        )
    return parity


def _add_suppression(graph: Path, overlap: float) -> None:
    """Append ONNX's non-maximum suppression per class, with the output ``selected``."""
    import onnx
    from onnx import TensorProto, helper

    content = onnx.load(graph)
    limits = {
        "most": helper.make_tensor("most", TensorProto.INT64, [1], [MOST]),
        "overlap": helper.make_tensor("overlap", TensorProto.FLOAT, [1], [overlap]),
        "lowest": helper.make_tensor("lowest", TensorProto.FLOAT, [1], [SCORE]),
    }
    content.graph.initializer.extend(limits.values())
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", *limits], ["selected"], name="suppression")
    content.graph.node.append(node)
    content.graph.output.append(helper.make_tensor_value_info("selected", TensorProto.INT64, ["kept", 3]))
    onnx.checker.check_model(content)
    onnx.save(content, graph)


def _described(name: str, detector: Any, folds: Sequence[str]) -> dict[str, Any]:
    spec = detector.spec
    return {
        "categories": list(spec.categories),
        "image_size": spec.image_size,
        "input": "RGB in [0, 1]; the long side fills the square, centred on grey 114/255",
        "boxes": "(B, A, 4) left, top, right, bottom in pixels of the square; clip them to it after suppression",
        "scores": "(B, K, A)",
        "selected": "(n, 3) image, category, box that survive non-maximum suppression",
        "overlap": detector.overlap,
        "score": SCORE,
        "most": MOST,
        "made_from": {
            "name": name,
            "detector": spec.name,
            "folds": list(folds),
            "weights": [weights_digest(detector.state_dict())],
            "medkd": __version__,
        },
    }


def _card(described: dict[str, Any]) -> str:
    lines = [f"# {described['made_from']['name']}", ""]
    lines += ["A detector exported by medkd to ONNX. Research software, not a medical device; not for diagnosis.", ""]
    for key in ("categories", "image_size", "input", "boxes", "scores", "selected", "overlap"):
        lines.append(f"- {key}: {described[key]}")
    return "\n".join([*lines, ""])
