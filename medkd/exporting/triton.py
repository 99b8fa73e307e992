"""Models as a repository for NVIDIA's Triton: the network for its ONNX backend, and the chain around it in Python.

``config.pbtxt`` follows ``ModelConfig`` of triton-inference-server/common, protobuf/model_config.proto.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medkd.core.files import write_text
from medkd.models.segmentation import TrainedModel

NETWORK = "network"
CHAIN = "segmentation"
_VERSION = "1"
_MOST_PATCHES = 8  # of one request

_BACKEND = '''"""The chain from a scan to its label map, for Triton's Python backend; needs medkd-runtime.

Inputs: ``image`` (C, z, y, x) float32 with the values of the scan, ``affine`` (4, 4) float64 from voxels (x, y, z) to
millimetres in RAS, as NIfTI has it. Output: ``labels`` (z, y, x) int16 in the scan's own grid.
"""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from medkd.core.geometry import Geometry
from medkd.runtime.package import check_network, read_exported
from medkd.runtime.predictor import RuntimePredictor

MOST_PATCHES = {most}  # max_batch_size of the network


def network(batch):
    """Logits of patches, by the network beside this model, which takes MOST_PATCHES of them at a time."""
    parts = [batch[start : start + MOST_PATCHES] for start in range(0, len(batch), MOST_PATCHES)]
    return np.concatenate([ask(part) for part in parts])


def ask(batch):
    """Logits of as many patches as one request may hold."""
    tensor = pb_utils.Tensor("image", np.ascontiguousarray(batch, dtype=np.float32))
    request = pb_utils.InferenceRequest(model_name="network", requested_output_names=["logits"], inputs=[tensor])
    response = request.exec()
    if response.has_error():
        raise pb_utils.TritonModelException(response.error().message())
    return pb_utils.get_output_tensor_by_name(response, "logits").as_numpy()


class TritonPythonModel:
    """Loaded once by the server, then asked with one scan after the other."""

    def initialize(self, args):
        """Read the description of the chain; a network that lies beside it must be the one that it describes."""
        folder = Path(args["model_repository"]) / args["model_version"]
        exported = read_exported(folder)
        beside = folder.parents[1] / "network" / "1"
        if beside.is_dir():  # where the server keeps each model in a place of its own, it is not
            check_network(beside, exported)
        self.predictor = RuntimePredictor(exported, network)

    def execute(self, requests):
        """Segment the scan of every request."""
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """The label map of one request, or what is wrong with it."""
        try:
            image = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
            affine = pb_utils.get_input_tensor_by_name(request, "affine").as_numpy()
            if not (np.isfinite(image).all() and np.isfinite(affine).all() and np.linalg.det(affine[:3, :3])):
                raise ValueError("expected finite values in image and affine, and an affine that can be inverted")
            geometry = Geometry.from_affine(image.shape[1:], affine)
            labels = self.predictor.predict_case(image, geometry, "the scan")
            output = pb_utils.Tensor("labels", labels.astype(np.int16))
            return pb_utils.InferenceResponse(output_tensors=[output])
        except Exception as error:
            return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error)))
'''


def version_folder(repository: Path, model: str) -> Path:
    """Folder of the one version of a model in a repository."""
    return repository / model / _VERSION


def write_configurations(trained: TrainedModel, repository: Path) -> None:
    """Write ``config.pbtxt`` of the network and of the chain, and the chain's code.

    Args:
        trained: what was exported.
        repository: the folder that the server is given; the network and the description are written by the caller.
    """
    channels, outputs = len(trained.channels), trained.labels.num_outputs
    patch = tuple(trained.patch_size)
    network = [
        f'name: "{NETWORK}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {_MOST_PATCHES}",
        _tensor("input", "image", "TYPE_FP32", (channels, *patch)),
        _tensor("output", "logits", "TYPE_FP32", (outputs, *patch)),
        "",
    ]
    chain = [
        f'name: "{CHAIN}"',
        'backend: "python"',
        "max_batch_size: 0",
        _tensor("input", "image", "TYPE_FP32", (channels, -1, -1, -1)),
        _tensor("input", "affine", "TYPE_FP64", (4, 4)),
        _tensor("output", "labels", "TYPE_INT16", (-1, -1, -1)),
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
        "",
    ]
    write_text(repository / NETWORK / "config.pbtxt", "\n".join(network))
    write_text(repository / CHAIN / "config.pbtxt", "\n".join(chain))
    write_text(version_folder(repository, CHAIN) / "model.py", _BACKEND.replace("{most}", str(_MOST_PATCHES)))


def _tensor(kind: str, name: str, type: str, dims: Sequence[int]) -> str:
    shape = ", ".join(str(side) for side in dims)
    return f'{kind} [ {{ name: "{name}" data_type: {type} dims: [ {shape} ] }} ]'
