"""Models as a MONAI bundle: its metadata, its network as a module, and a configuration that runs medkd's own chain.

The bundle specification is MONAI's (MONAI Consortium, arXiv 2211.02701). medkd's spline resampling, crop and tiles are
not those of MONAI's transforms, so ``inference.json`` names medkd's functions by ``_target_`` and says so on its card.
"""

from __future__ import annotations

import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medkd import __version__
from medkd.core.checkpoint import save_checkpoint
from medkd.core.errors import RunError
from medkd.core.files import write_json
from medkd.models.onnx import MeanOfNetworks
from medkd.models.segmentation import TrainedModel

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
METADATA = Path("configs") / "metadata.json"
INFERENCE = Path("configs") / "inference.json"
MODELS = Path("models")


def write_configurations(trained: TrainedModel, name: str, folder: Path) -> None:
    """Write ``configs/metadata.json`` and ``configs/inference.json``.

    Args:
        trained: what was exported.
        name: of the model.
        folder: of the bundle; the network and ``preprocessing.json`` are written by the caller.
    """
    write_json(folder / METADATA, _metadata(trained, name))
    write_json(folder / INFERENCE, _inference())


def write_module(trained: TrainedModel, folder: Path) -> None:
    """Write ``models/model.ts``, the network as TorchScript for whoever has an inferer of their own, and
    ``models/model.pt``, its weights, which the specification asks for.

    Raises:
        RunError: it cannot be traced, or computes something else then.
    """
    network = MeanOfNetworks(trained.networks).eval()
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, len(trained.channels), *trained.patch_size, generator=generator)
    file = folder / MODELS / "model.ts"
    file.parent.mkdir()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, sample, check_trace=False)
        same = torch.allclose(traced(sample[:1]), network(sample[:1]), atol=1e-4)
    if not same:
        raise RunError("The network cannot be traced for a MONAI bundle; export with --format onnx.")
    traced.save(str(file))
    save_checkpoint(file.with_suffix(".pt"), dict(network.state_dict()))


def _metadata(trained: TrainedModel, name: str) -> dict[str, Any]:
    structures = {str(value): label for label, value in _values(trained)}
    patch = list(trained.patch_size)
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": ", ".join(trained.channels),
        "num_channels": len(trained.channels),
        "spatial_shape": patch,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(index): channel for index, channel in enumerate(trained.channels)},
    }
    logits = {
        "type": "image",
        "format": "segmentation",
        "num_channels": trained.labels.num_outputs,
        "spatial_shape": patch,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": structures,
    }
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported by medkd"},
        "monai_version": _version("monai"),
        "pytorch_version": str(torch.__version__).partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"medkd": __version__, "onnxruntime": _version("onnxruntime")},
        "name": name,
        "task": f"Segmentation of {', '.join(label for label, _ in trained.labels.foreground)}",
        "description": f"{name} for {trained.plan.dataset}; research software, not a medical device.",
        "authors": "the people who trained the model",
        "copyright": "of the people who trained the model",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": logits}},
    }


def _inference() -> dict[str, Any]:
    chain = {
        "_target_": "medkd.inference.folder.predict_folder",
        "inputs": "@dataset_dir",
        "outputs": "@output_dir",
        "run": "@bundle_root",
    }
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "cpu",
        "network_def": {"_target_": "medkd.models.engine_network.open_network", "folder": "@bundle_root"},
        "predict": chain,
        "run": ["$@predict"],
    }


def _values(trained: TrainedModel) -> list[tuple[str, int]]:
    """Structures with the output channel that stands for each."""
    if trained.labels.regions:
        names = [label for label, _ in trained.labels.entries if label != "background"]
        return [(label, channel) for channel, label in enumerate(names)]
    return [(label, values[0]) for label, values in trained.labels.entries]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
