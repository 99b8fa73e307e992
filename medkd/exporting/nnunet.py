"""Planned U-Nets as a model folder that stock nnU-Net v2 runs (``nnUNetv2_predict_from_modelfolder``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medkd.core.checkpoint import save_checkpoint
from medkd.core.errors import RunError
from medkd.core.files import write_json
from medkd.core.plan import Configuration, Plan, Resampling
from medkd.core.run import PLANS_FILE
from medkd.models.nnunet.plans import NORMALIZATIONS
from medkd.models.segmentation import TrainedModel
from medkd.networks.planned import PlannedUNet

CHECKPOINT = "checkpoint_final.pth"
PLANS_NAME = "medkdPlans"
_TRAINER = "nnUNetTrainer"
_CLASSES = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
_READERS = {None: "SimpleITKIO", "RAS": "NibabelIOWithReorient"}
_SPLINE = "resample_data_or_seg_to_shape"


def write_nnunet(trained: TrainedModel, folder: Path) -> None:
    """Write ``plans.json``, ``dataset.json`` and a checkpoint per fold, as nnU-Net 2.4 and later keep them.

    Args:
        trained: planned U-Nets (``plain_unet``, ``resenc_unet_*``), of any width.
        folder: to be filled; nnU-Net's ``<trainer>__<plans>__<configuration>``.

    Raises:
        RunError: the network, or a part of the preprocessing, is nothing that nnU-Net can do.
    """
    networks = _planned(trained.networks)
    plans = _plans(trained, networks[0])
    stated = trained.labels.to_json()
    dataset: dict[str, Any] = {
        "channel_names": {str(index): name for index, name in enumerate(trained.channels)},
        **stated,
        "numTraining": 0,
        "file_ending": ".nii.gz",
        "name": trained.plan.dataset,
    }
    write_json(folder / PLANS_FILE, plans)
    write_json(folder / "dataset.json", dataset)
    for network, fold in zip(networks, trained.folds, strict=True):
        content = {
            "network_weights": dict(network.net.state_dict()),
            "trainer_name": _TRAINER,
            "inference_allowed_mirroring_axes": tuple(trained.mirror_axes),
            "init_args": {
                "plans": plans,
                "configuration": trained.configuration.name,
                "fold": fold if fold == "all" else int(fold),
                "dataset_json": dataset,
            },
        }
        save_checkpoint(folder / f"fold_{fold}" / CHECKPOINT, content)


def _planned(networks: Sequence[Any]) -> list[PlannedUNet]:
    found = []
    for network in networks:
        if not isinstance(network, PlannedUNet) or type(network.net).__name__ not in _CLASSES:
            raise RunError(
                f"nnU-Net builds its own planned U-Nets only, not {type(network).__name__}; export with --format onnx, "
                "or distil into plain_unet."
            )
        found.append(network)
    return found


def _plans(trained: TrainedModel, network: PlannedUNet) -> dict[str, Any]:
    plan, configuration = trained.plan, trained.configuration
    if plan.orientation not in _READERS:
        raise RunError(
            f"nnU-Net reads scans as stored or turned to RAS, but this model wants {plan.orientation}; export with "
            "--format onnx."
        )
    spacing, shape = list(configuration.spacing), list(configuration.median_shape)
    lacking = 3 - configuration.rank
    intensities = {}
    for index, statistics in enumerate(plan.intensities):
        intensities[str(index)] = asdict(statistics)
    return {
        "dataset_name": plan.dataset,
        "plans_name": PLANS_NAME,
        "original_median_spacing_after_transp": spacing[:1] * lacking + spacing,
        "original_median_shape_after_transp": [1] * lacking + shape,
        "image_reader_writer": _READERS[plan.orientation],
        "transpose_forward": list(plan.transpose),
        "transpose_backward": list(plan.transpose_back),
        "configurations": {configuration.name: _configuration(plan, configuration, network)},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": intensities,
    }


def _configuration(plan: Plan, configuration: Configuration, network: PlannedUNet) -> dict[str, Any]:
    if configuration.crop != "nonzero":
        raise RunError(
            f"nnU-Net crops scans to their non-zero voxels only, but this model wants '{configuration.crop}'; export "
            "with --format onnx."
        )
    theirs = {ours: scheme for scheme, ours in NORMALIZATIONS.items()}
    schemes = []
    for name in configuration.normalization:
        if name not in theirs:
            raise RunError(f"nnU-Net does not know the normalisation '{name}'; export with --format onnx.")
        schemes.append(theirs[name])
    return {
        "data_identifier": f"{PLANS_NAME}_{configuration.name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": network.architecture.batch_size,
        "patch_size": list(network.spec.patch_size),
        "median_image_size_in_voxels": [float(side) for side in configuration.median_shape],
        "spacing": list(configuration.spacing),
        "normalization_schemes": schemes,
        "use_mask_for_norm": list(configuration.use_mask_for_norm),
        **_resampling(configuration.resampling),
        "architecture": _architecture(network),
        "batch_dice": configuration.batch_dice,
    }


def _resampling(orders: Resampling) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for theirs, order, order_z in (
        ("data", orders.image_order, orders.image_order_z),
        ("seg", orders.label_order, orders.label_order_z),
        ("probabilities", orders.logits_order, orders.logits_order_z),
    ):
        found[f"resampling_fn_{theirs}"] = _SPLINE
        found[f"resampling_fn_{theirs}_kwargs"] = {
            "is_seg": theirs == "seg",
            "order": order,
            "order_z": order_z,
            "force_separate_z": orders.force_separate_z,
        }
    return found


def _architecture(network: PlannedUNet) -> Mapping[str, Any]:
    name = type(network.net).__name__
    rank, shape = network.rank, network.architecture
    arguments = {
        "n_stages": len(network.widths),
        "features_per_stage": list(network.widths),
        "conv_op": f"torch.nn.modules.conv.Conv{rank}d",
        "kernel_sizes": [list(kernel) for kernel in shape.kernel_sizes],
        "strides": [list(stride) for stride in shape.strides],
        _CLASSES[name]: list(shape.blocks_encoder),
        "n_conv_per_stage_decoder": list(shape.blocks_decoder),
        "conv_bias": True,
        "norm_op": _norm(network),
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _norm(network: PlannedUNet) -> str:
    kinds = {type(module).__name__ for module in network.net.modules()}
    kind = "BatchNorm" if kinds & {"BatchNorm2d", "BatchNorm3d"} else "InstanceNorm"
    return f"torch.nn.modules.{kind.lower()}.{kind}{network.rank}d"
