"""Tiny model folders of nnU-Net v2's format with weights from numbers, and nnU-Net itself where it is installed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medkd.models.nnunet.checkpoint import NnunetCheckpoint
from medkd.models.nnunet.plans import previous_stage_of
from medkd.networks import build_network

NNUNET = "MEDKD_NNUNET_PYTHON"
"""Environment variable: the Python of an environment with nnunetv2."""
ORACLE = Path(__file__).parents[2] / "fixtures" / "nnunet_oracle"
_SCRIPT = """
import inspect, json, sys, textwrap, torch
from functools import partial
import nnunetv2.inference.predict_from_raw_data as source
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

# nnU-Net adds tiles up in half precision, which alone moves probabilities of random networks by a tenth
name = "_internal_predict_sliding_window_return_logits"
text = textwrap.dedent(inspect.getsource(getattr(source.nnUNetPredictor, name)))
exec(text.replace("torch.half", "torch.float"), vars(source))
setattr(source.nnUNetPredictor, name, getattr(source, name))
source.compute_gaussian = partial(compute_gaussian, dtype=torch.float32)
source.compute_gaussian.cache_clear = compute_gaussian.cache_clear
torch.set_num_threads(1)
model, inputs, outputs, previous, mirror, folds = json.loads(sys.argv[1])
predictor = source.nnUNetPredictor(use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(model, use_folds=folds)
predictor.predict_from_files_sequential(inputs, outputs, True, True, folder_with_segs_from_prev_stage=previous)
"""


def plans_of(
    configurations: Mapping[str, Any],
    reader: str = "SimpleITKIO",
    channels: int = 1,
    transpose: Sequence[int] = (0, 1, 2),
) -> dict[str, Any]:
    """``plans.json`` with these configurations (see :func:`configured`)."""
    statistics = {"mean": 5.0, "median": 5.0, "std": 2.0, "min": 0.0, "max": 12.0}
    statistics |= {"percentile_00_5": 1.0, "percentile_99_5": 11.0}
    return {
        "dataset_name": "Dataset900_Boxes",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [20, 18, 22],
        "image_reader_writer": reader,
        "transpose_forward": list(transpose),
        "transpose_backward": [int(axis) for axis in np.argsort(transpose)],
        "configurations": dict(configurations),
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(index): statistics for index in range(channels)},
    }


def configured(spacing: Sequence[float], patch: Sequence[int], channels: int = 1, **more: Any) -> dict[str, Any]:
    """A configuration with a U-Net of two stages."""
    rank = len(patch)
    functions: dict[str, Any] = {}
    for name, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        functions[f"resampling_fn_{name}"] = "resample_data_or_seg_to_shape"
        keywords = {"is_seg": name == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        functions[f"resampling_fn_{name}_kwargs"] = keywords
    network = {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{rank}d",
        "kernel_sizes": [[3] * rank] * 2,
        "strides": [[1] * rank, [2] * rank],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{rank}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "data_identifier": "nnUNetPlans",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": [20.0] * rank,
        "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        **functions,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
        **more,
    }


def dataset_of(
    labels: Mapping[str, Any] | None = None, channels: Sequence[str] = ("MR",), **more: Any
) -> dict[str, Any]:
    """``dataset.json``."""
    return {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": dict(labels or {"background": 0, "small": 1, "large": 2}),
        "numTraining": 6,
        "file_ending": ".nii.gz",
        **more,
    }


def write_model(
    folder: Path,
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    configuration: str,
    *,
    folds: Sequence[int | str] = (0,),
    seed: int = 0,
    trainer: str = "nnUNetTrainer",
    axes: Sequence[int] | None = None,
) -> Path:
    """Write a model folder whose weights are numpy's normal numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    cascade = previous_stage_of(plans, configuration, "plans.json") is not None
    for number, fold in enumerate(folds):
        file = folder / f"fold_{fold}" / "checkpoint_final.pth"
        file.parent.mkdir(exist_ok=True)
        content = {
            "network_weights": {},
            "trainer_name": trainer,
            "inference_allowed_mirroring_axes": None if axes is None else tuple(axes),
            "init_args": {
                "configuration": configuration,
                "fold": fold,
                "plans": dict(plans),
                "dataset_json": dict(dataset),
            },
        }
        torch.save(content, file)
        spec = NnunetCheckpoint.read(file, cascade=cascade).spec
        content["network_weights"] = _weights(build_network(spec).net, seed + number)
        torch.save(content, file)
    return folder


def _weights(network: Any, seed: int) -> dict[str, torch.Tensor]:
    """Weights of a network's state, whose second names are those of the same tensors."""
    generator = np.random.default_rng(seed)
    made: dict[int, torch.Tensor] = {}
    weights = {}
    for name, value in network.state_dict(keep_vars=True).items():
        if id(value) not in made:
            fan = max(1, value[0].numel()) if value.ndim > 1 else 25
            numbers = torch.from_numpy(generator.normal(0, (2 / fan) ** 0.5, value.shape)).float()
            made[id(value)] = numbers + 1 if name.endswith("norm.weight") else numbers
        weights[name] = made[id(value)]
    return weights


def nnunet_probabilities(
    model: Path,
    files: Sequence[Path],
    out: Path,
    *,
    previous: Path | None = None,
    mirror: bool = False,
    folds: Sequence[int] = (0,),
) -> np.ndarray:
    """What nnU-Net itself predicts for a case: probabilities ``(K, z, y, x)``; skips where it is not installed."""
    python = os.environ.get(NNUNET)
    if not python:
        pytest.skip(f"set {NNUNET} to the Python of an environment with nnunetv2")
    case = files[0].name.rpartition("_")[0]
    out.mkdir(parents=True, exist_ok=True)
    where = None if previous is None else str(previous)
    asked = [str(model), [[str(file) for file in files]], [str(out / case)], where, mirror, list(folds)]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-c", _SCRIPT, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)
    assert done.returncode == 0, done.stderr
    with np.load(out / f"{case}.npz") as stored:
        return stored["probabilities"]
