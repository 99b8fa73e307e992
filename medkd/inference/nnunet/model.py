"""A model folder of nnU-Net v2, loaded without nnU-Net and without running anything that the folder holds."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medkd.core.checkpoint import load_checkpoint
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import RunError
from medkd.core.files import read_json
from medkd.core.plan import Plan
from medkd.core.run import NetworkSpec
from medkd.inference.model import TrainedModel, freeze
from medkd.inference.nnunet.plans import network_of, plan_from_nnunet
from medkd.networks.base import SegmentationNetwork, build_network

CHECKPOINTS = {"final": "checkpoint_final.pth", "best": "checkpoint_best.pth"}
# built-in trainers that keep the planned network: they change the loss, the schedule, the augmentation or the optimiser
_TRAINERS = re.compile(
    r"nnUNetTrainer(BN|(_?\d+epochs?.*)|NoDA.*|DA5.*|DAOrd0.*|(_?NoMirroring.*)|(_?onlyMirror01.*)|DiceLoss.*|DiceCELoss.*|CELoss.*|DiceTopK.*"
    r"|TopkLoss.*|Adam.*|Vanilla.*|CosAnneal.*|PolyLR.*|_?[Nn]oDeepSupervision.*|_probabilisticOversampling.*|BenchmarkLoss.*|_noDummy2DDA"
    r"|WarmUp.*|_warmup.*)?$"
)
_scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]  # numpy's rebuilding of a scalar; its module was renamed in numpy 2
ALLOWED = (
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (codecs.encode, "_codecs.encode"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
)


def is_nnunet_folder(path: Path) -> bool:
    """Whether a folder looks like an nnU-Net v2 model: ``plans.json``, ``dataset.json`` and folds with ``.pth`` checkpoints."""
    needed = [path / "plans.json", path / "dataset.json"]
    return all(p.exists() for p in needed) and not (path / "run.json").exists() and any(path.glob("fold_*/checkpoint_*.pth"))


def load_nnunet(path: Path, folds: Sequence[int | str] | None = None, *, checkpoint: str = "final") -> TrainedModel:
    """Load networks, plan and labels of an nnU-Net v2 model folder, on the CPU and in evaluation mode.

    Args:
        path: ``<results>/DatasetNNN_Name/<trainer>__<plans>__<configuration>``.
        folds: 0-4 or ``"all"``; None takes every fold that has the checkpoint.
        checkpoint: ``"final"`` or ``"best"``.

    Raises:
        RunError: a fold is missing, a checkpoint holds more than data, or the trainer changes the network.
        PlanError: the plan asks for what medkd cannot build.
    """
    name = CHECKPOINTS[checkpoint]
    trained = sorted(p.parent.name.removeprefix("fold_") for p in path.glob(f"fold_*/{name}"))
    wanted = trained if folds is None else [str(fold) for fold in folds]
    missing = [fold for fold in wanted if fold not in trained]
    if missing or not wanted:
        raise RunError(f"{path}: fold {', '.join(missing) or 'of any number'} has no {name}; there are: {', '.join(trained) or 'none'}.")
    networks, described = [], []
    for fold in wanted:
        file = path / f"fold_{fold}" / name
        content = load_checkpoint(file, allowed=ALLOWED)
        model, spec, batch_norm = _describe(path, content, file)
        networks.append(_network(spec, batch_norm, content, file))
        described.append(model)
    return replace(described[0], networks=networks, folds=tuple(wanted))


def describe_nnunet(path: Path) -> TrainedModel:
    """What an nnU-Net v2 model folder says of itself, with the names of its trained folds but without their networks.

    Raises:
        RunError: no fold is trained, a checkpoint holds more than data, or the trainer changes the network.
        PlanError: the plan asks for what medkd cannot build.
    """
    trained = nnunet_folds(path)
    if not trained:
        raise RunError(f"{path}: no fold has a {' or '.join(CHECKPOINTS.values())}; let nnU-Net finish the training of one first.")
    fold, kind = next(iter(trained.items()))
    file = path / f"fold_{fold}" / CHECKPOINTS[kind]
    return replace(_describe(path, load_checkpoint(file, allowed=ALLOWED), file)[0], folds=tuple(trained))


def nnunet_folds(path: Path) -> dict[str, str]:
    """The trained folds of a model folder, each with its checkpoint: ``"final"``, or ``"best"`` where there is no final one."""
    folders = sorted(path.glob("fold_*"))
    found = {f.name.removeprefix("fold_"): [kind for kind, file in CHECKPOINTS.items() if (f / file).exists()] for f in folders}
    return {fold: kinds[0] for fold, kinds in found.items() if kinds}


def _describe(path: Path, content: Mapping[str, Any], file: Path) -> tuple[TrainedModel, NetworkSpec, bool]:
    """The model without networks and folds, what its network is, and whether that has batch norms."""
    plans, dataset = read_json(path / "plans.json"), DatasetDescription.load(path / "dataset.json")
    configuration = _configuration_name(content, file)
    plan = plan_from_nnunet(plans, configuration, str(path / "plans.json"))
    spec, batch_norm = _spec(plans, plan, configuration, dataset, path)
    axes = tuple(content.get("inference_allowed_mirroring_axes") or ())
    model = TrainedModel((), plan, plan.configuration(configuration), dataset.labels, spec.patch_size, axes, ())
    return model, spec, batch_norm or content.get("trainer_name") == "nnUNetTrainerBN"


def _configuration_name(content: Mapping[str, Any], file: Path) -> str:
    arguments = content.get("init_args")
    if not isinstance(arguments, Mapping) or "network_weights" not in content:
        raise RunError(f"{file} is not an nnU-Net v2 checkpoint: it lacks 'init_args' or 'network_weights'.")
    trainer = str(content.get("trainer_name"))
    if not _TRAINERS.match(trainer):
        raise RunError(
            f"{file} was made by the trainer '{trainer}', which may change the network; medkd imports nnU-Net's own planned U-Nets."
        )
    return str(arguments["configuration"])


def _spec(
    plans: Mapping[str, Any], plan: Plan, configuration: str, dataset: DatasetDescription, path: Path
) -> tuple[NetworkSpec, bool]:  # fmt: skip
    name, batch_norm = network_of(plans, configuration, str(path / "plans.json"))
    architecture = plan.configuration(configuration).architecture(name)
    spec = NetworkSpec(name, len(dataset.channel_names), dataset.labels.num_outputs, architecture.patch_size, architecture)
    return spec, batch_norm


def _network(spec: NetworkSpec, batch_norm: bool, content: Mapping[str, Any], file: Path) -> SegmentationNetwork:
    with torch.random.fork_rng(devices=[]):
        network = build_network(spec)
    if batch_norm:
        _use_batch_norm(network, {})
    try:
        network.load_state_dict({f"net.{_clean(key)}": value for key, value in content["network_weights"].items()})
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise RunError(
            f"{file}: the trainer '{content.get('trainer_name')}' made another network than plans.json describes ({detail})."
        ) from error
    return freeze(network)


def _clean(key: str) -> str:
    return key.removeprefix("module.").removeprefix("_orig_mod.")


def _use_batch_norm(module: nn.Module, made: dict[int, nn.Module]) -> None:
    """Put batch norms in the place of instance norms; a norm that is registered twice stays one module."""
    for name, child in module.named_children():
        if isinstance(child, (nn.InstanceNorm2d, nn.InstanceNorm3d)):
            kind = nn.BatchNorm3d if isinstance(child, nn.InstanceNorm3d) else nn.BatchNorm2d
            setattr(module, name, made.setdefault(id(child), kind(child.num_features, eps=child.eps)))
        else:
            _use_batch_norm(child, made)
