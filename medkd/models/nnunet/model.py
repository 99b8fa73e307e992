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
from medkd.core.plan import Plan
from medkd.core.run import NetworkSpec
from medkd.models.nnunet.plans import load_plans, network_of, plan_from_nnunet
from medkd.models.nnunet.trainers import BATCH_NORM, keeps_network
from medkd.models.trained import TrainedModel, freeze
from medkd.networks.base import SegmentationNetwork, build_network

CHECKPOINTS = {"final": "checkpoint_final.pth", "best": "checkpoint_best.pth"}
_FOLD = re.compile(r"fold_([0-9]+|all)")  # fold_0_backup is none
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile, in any order
_scalar = type(np.float64(0)).__reduce__(np.float64(0))[
    0
]  # numpy's rebuilding of a scalar; its module was renamed in numpy 2
ALLOWED = (
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (codecs.encode, "_codecs.encode"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
)


def is_nnunet_folder(path: Path) -> bool:
    """Whether a folder looks like an nnU-Net v2 model: ``plans.json``, ``dataset.json`` and folds with ``.pth``
    checkpoints.
    """
    needed = [path / "plans.json", path / "dataset.json"]
    return (
        all(p.exists() for p in needed)
        and not (path / "run.json").exists()
        and any(path.glob("fold_*/checkpoint_*.pth"))
    )


def load_nnunet(path: Path, folds: Sequence[int | str] | None = None, *, checkpoint: str = "final") -> TrainedModel:
    """Load networks, plan and labels of an nnU-Net v2 model folder, on the CPU and in evaluation mode.

    Args:
        path: ``<results>/DatasetNNN_Name/<trainer>__<plans>__<configuration>``.
        folds: 0-4 or ``"all"``; None takes every numbered fold that has the checkpoint, as nnU-Net does, ``"all"``
            where there is none.
        checkpoint: ``"final"`` or ``"best"``.

    Raises:
        RunError: a fold is missing or was trained as another, a checkpoint holds more than data, or the trainer changes
            the network.
        PlanError: the plan asks for what medkd cannot build.
    """
    name, found = CHECKPOINTS[checkpoint], _checkpoints(path)
    trained = [fold for fold, kinds in found.items() if checkpoint in kinds]
    wanted = [fold for fold in trained if fold != "all"] or trained if folds is None else [str(fold) for fold in folds]
    missing = [fold for fold in wanted if fold not in trained]
    if missing or not wanted:
        others = {kind: [fold for fold in missing or found if kind in found.get(fold, ())] for kind in CHECKPOINTS}
        hint = "".join(
            f"; give --checkpoint {kind} for {CHECKPOINTS[kind]} of fold {', '.join(has)}"
            for kind, has in others.items()
            if has
        )
        raise RunError(
            f"{path}: fold {', '.join(missing) or 'of any number'} has no {name}; there are: "
            f"{', '.join(trained) or 'none'}{hint}."
        )
    networks, described = [], []
    for fold in wanted:
        file = path / f"fold_{fold}" / name
        content = _read(file)
        model, spec, batch_norm = _describe(path, content, file)
        networks.append(_network(spec, batch_norm, content, file))
        described.append(model)
    return replace(described[0], networks=networks, folds=tuple(wanted))


def describe_nnunet(path: Path) -> TrainedModel:
    """What an nnU-Net v2 model folder says of itself, with the names of its trained folds but without their networks.

    Raises:
        RunError: no fold is trained, or the first was trained as another, holds more than data, or its trainer changes
            the network.
        PlanError: the plan asks for what medkd cannot build.
    """
    trained = nnunet_folds(path)
    if not trained:
        raise RunError(
            f"{path}: no fold has a {' or '.join(CHECKPOINTS.values())}; let nnU-Net finish the training of one first."
        )
    fold, kind = next(iter(trained.items()))
    file = path / f"fold_{fold}" / CHECKPOINTS[kind]
    return replace(_describe(path, _read(file), file)[0], folds=tuple(trained))


def nnunet_folds(path: Path) -> dict[str, str]:
    """The trained folds of a model folder, each with its checkpoint: ``"final"``, or ``"best"`` where there is no final
    one.
    """
    return {fold: kinds[0] for fold, kinds in _checkpoints(path).items()}


def check_fold(path: Path, fold: str) -> None:
    """See to it that the weights in a fold's folder say of themselves that they were trained as this fold.

    Raises:
        RunError: they name another fold, or none.
    """
    file = path / f"fold_{fold}" / CHECKPOINTS[nnunet_folds(path)[fold]]
    if _read(file)["init_args"].get("fold") is None:
        raise RunError(
            f"{file} does not say as which fold it was trained, so nobody can say which cases it has seen; take "
            "nnU-Net's own file."
        )


def _checkpoints(path: Path) -> dict[str, list[str]]:
    """The trained folds in order, ``"all"`` last, each with the kinds of its checkpoints, the final one first."""
    names = sorted(match[1] for folder in path.glob("fold_*") if (match := _FOLD.fullmatch(folder.name)))
    found = {
        name: [kind for kind, file in CHECKPOINTS.items() if (path / f"fold_{name}" / file).exists()] for name in names
    }
    return {fold: kinds for fold, kinds in found.items() if kinds}


def _read(file: Path) -> dict[str, Any]:
    """A checkpoint of a trainer that keeps the planned network, in the folder of its own fold."""
    content = load_checkpoint(file, allowed=ALLOWED)
    arguments = content.get("init_args")
    if (
        not isinstance(arguments, Mapping)
        or "configuration" not in arguments
        or not isinstance(content.get("network_weights"), Mapping)
    ):
        raise RunError(
            f"{file} is not an nnU-Net v2 checkpoint: it lacks 'init_args' with a configuration, or 'network_weights' "
            "by name."
        )
    trainer, lies = str(content.get("trainer_name")), file.parent.name.removeprefix("fold_")
    if not keeps_network(trainer):
        raise RunError(
            f"{file} was made by the trainer '{trainer}', which may change the network; medkd imports nnU-Net's own "
            "planned U-Nets."
        )
    fold = arguments.get("fold")
    if fold is not None and str(fold) != lies:
        raise RunError(
            f"{file} was trained as fold {fold}, but lies in fold_{lies}; give the folder its name fold_{fold} back, "
            "which says what cases "
            "the weights have seen."
        )
    return content


def _describe(path: Path, content: Mapping[str, Any], file: Path) -> tuple[TrainedModel, NetworkSpec, bool]:
    """The model without networks and folds, what its network is, and whether that has batch norms."""
    plans, dataset = load_plans(path / "plans.json"), DatasetDescription.load(path / "dataset.json")
    plans.setdefault(
        "image_reader_writer", dataset.extra.get("overwrite_image_reader_writer")
    )  # the plan decides, as in nnU-Net
    configuration = str(content["init_args"]["configuration"])
    plan = plan_from_nnunet(plans, configuration, str(path / "plans.json"))
    spec, batch_norm = _spec(plans, plan, configuration, dataset, path)
    axes = tuple(content.get("inference_allowed_mirroring_axes") or ())
    model = TrainedModel((), plan, plan.configuration(configuration), dataset.labels, spec.patch_size, axes, ())
    return model, spec, batch_norm or content.get("trainer_name") == BATCH_NORM


def _spec(
    plans: Mapping[str, Any], plan: Plan, configuration: str, dataset: DatasetDescription, path: Path
) -> tuple[NetworkSpec, bool]:  # fmt: skip
    name, batch_norm = network_of(plans, configuration, str(path / "plans.json"))
    architecture = plan.configuration(configuration).architecture(name)
    spec = NetworkSpec(
        name=name,
        in_channels=len(dataset.channel_names),
        num_outputs=dataset.labels.num_outputs,
        patch_size=architecture.patch_size,
        architecture=architecture,
    )
    return spec, batch_norm


def _network(spec: NetworkSpec, batch_norm: bool, content: Mapping[str, Any], file: Path) -> SegmentationNetwork:
    with torch.random.fork_rng(devices=[]):
        network = build_network(spec)
    if batch_norm:
        _use_batch_norm(network, {})
    try:
        network.load_state_dict(
            _with_twins(
                network, {f"net.{_clean(str(key))}": value for key, value in content["network_weights"].items()}
            )
        )
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise RunError(
            f"{file}: the trainer '{content.get('trainer_name')}' made another network than plans.json describes "
            f"({detail})."
        ) from error
    return freeze(network)


def _clean(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    return key


def _with_twins(network: nn.Module, weights: dict[str, Any]) -> dict[str, Any]:
    """The weights, with what a network registers under more than one name (a decoder holds its encoder) under all of
    them.
    """
    twins: dict[int, list[str]] = {}
    for key, value in network.state_dict(keep_vars=True).items():
        twins.setdefault(id(value), []).append(key)
    given = {keys[0]: next((weights[key] for key in keys if key in weights), None) for keys in twins.values()}
    filled = {key: given[keys[0]] for keys in twins.values() for key in keys if given[keys[0]] is not None}
    return {**filled, **weights}


def _use_batch_norm(module: nn.Module, made: dict[int, nn.Module]) -> None:
    """Put batch norms in the place of instance norms; a norm that is registered twice stays one module."""
    for name, child in module.named_children():
        if isinstance(child, (nn.InstanceNorm2d, nn.InstanceNorm3d)):
            kind = nn.BatchNorm3d if isinstance(child, nn.InstanceNorm3d) else nn.BatchNorm2d
            setattr(module, name, made.setdefault(id(child), kind(child.num_features, eps=child.eps)))
        else:
            _use_batch_norm(child, made)
