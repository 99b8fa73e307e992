"""One checkpoint of nnU-Net v2: what it says of itself, and the network that its weights belong to."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medkd.core.checkpoint import load_checkpoint
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import RunError
from medkd.core.labels import LabelSpec
from medkd.core.plan import Plan
from medkd.core.run import PLANS_FILE, NetworkSpec
from medkd.models.base import Checkpoint
from medkd.models.limits import check_spec
from medkd.models.nnunet.plans import load_plans, network_of, plan_from_nnunet
from medkd.models.nnunet.trainers import BATCH_NORM, keeps_network, mirrored_axes
from medkd.models.segmentation import TrainedModel
from medkd.models.weights import freeze
from medkd.networks.base import SegmentationNetwork, build_network

CHECKPOINTS: dict[Checkpoint, str] = {"final": "checkpoint_final.pth", "best": "checkpoint_best.pth"}
_FOLD = re.compile(r"fold_([0-9]+|all)")  # fold_0_backup is none
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile, in any order
# numpy's rebuilding of a scalar; its module was renamed in numpy 2
_scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]
ALLOWED = (
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (codecs.encode, "_codecs.encode"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
)


def trained_folds(path: Path) -> dict[str, list[Checkpoint]]:
    """The trained folds of a model folder in order, ``"all"`` last, each with its checkpoints, the final one first."""
    matches = [_FOLD.fullmatch(folder.name) for folder in path.glob("fold_*")]
    names = sorted(match[1] for match in matches if match)
    found: dict[str, list[Checkpoint]] = {}
    for name in names:
        kinds = [kind for kind, file in CHECKPOINTS.items() if (path / f"fold_{name}" / file).exists()]
        if kinds:
            found[name] = kinds
    return found


def configuration_in(path: Path) -> str | None:
    """The configuration that the first checkpoint of a model folder was trained with; None where it does not say.

    Raises:
        RunError: the file is no checkpoint.
    """
    for fold, kinds in trained_folds(path).items():
        content = load_checkpoint(path / f"fold_{fold}" / CHECKPOINTS[kinds[0]], allowed=ALLOWED)
        arguments = content.get("init_args")
        return (
            str(arguments["configuration"]) if isinstance(arguments, Mapping) and "configuration" in arguments else None
        )
    return None


@dataclass(frozen=True, kw_only=True)
class NnunetCheckpoint:
    """A checkpoint of a trainer that keeps the planned network, in the folder of its own fold.

    Attributes:
        file: ``MODEL/fold_0/checkpoint_final.pth``.
        content: what it holds.
        plan: the model's plan with the checkpoint's configuration.
        dataset: the model's data set.
        spec: the network.
        batch_norm: whether it has batch norms in the place of instance norms.
    """

    file: Path
    content: Mapping[str, Any]
    plan: Plan
    dataset: DatasetDescription
    spec: NetworkSpec
    batch_norm: bool

    @classmethod
    def read(cls, file: Path, *, cascade: bool = False) -> NnunetCheckpoint:
        """Read a checkpoint and the plan that lies above its fold's folder.

        Args:
            file: ``MODEL/fold_0/checkpoint_final.pth``.
            cascade: whether it is the second stage of a cascade, whose input has one more channel per label.

        Raises:
            RunError: the file is none, was trained as another fold, or its trainer changes the network.
            PlanError: the plan asks for what medkd cannot build.
        """
        content = load_checkpoint(file, allowed=ALLOWED)
        _check(content, file)
        path = file.parent.parent
        plans, dataset = load_plans(path / PLANS_FILE), DatasetDescription.load(path / "dataset.json")
        # the plan decides, as in nnU-Net
        plans.setdefault("image_reader_writer", dataset.extra.get("overwrite_image_reader_writer"))
        where, configuration = str(path / PLANS_FILE), str(content["init_args"]["configuration"])
        plan = plan_from_nnunet(plans, configuration, where, cascade=cascade)
        name, batch_norm = network_of(plans, configuration, where)
        architecture = plan.configuration(configuration).architecture(name)
        spec = NetworkSpec(
            name=name,
            in_channels=len(dataset.channel_names) + (len(foreground_values(dataset.labels)) if cascade else 0),
            num_outputs=dataset.labels.num_outputs,
            patch_size=architecture.patch_size,
            architecture=architecture,
        )
        batch_norm = batch_norm or content.get("trainer_name") == BATCH_NORM
        return cls(file=file, content=content, plan=plan, dataset=dataset, spec=spec, batch_norm=batch_norm)

    @property
    def fold(self) -> str | None:
        """The fold as which it was trained, as the file says itself."""
        fold = self.content["init_args"].get("fold")
        return None if fold is None else str(fold)

    def describe(self) -> TrainedModel:
        """The model without networks and folds."""
        return TrainedModel(
            plan=self.plan,
            configuration=self.plan.configuration(str(self.content["init_args"]["configuration"])),
            labels=self.dataset.labels,
            channels=self.dataset.channel_names,
            patch_size=self.spec.patch_size,
            mirror_axes=self._mirror_axes(),
        )

    def _mirror_axes(self) -> tuple[int, ...]:
        """The axes that training mirrored: as the file says, else as its trainer's name does."""
        rank, key = len(self.spec.patch_size), "inference_allowed_mirroring_axes"
        if key not in self.content:
            return mirrored_axes(str(self.content.get("trainer_name")), rank)
        stored = self.content[key] or ()
        if not isinstance(stored, (tuple, list)) or not set(stored) <= set(range(rank)):
            raise RunError(
                f"{self.file}: expected axes of the patch from 0 to {rank - 1} in {key}, found {stored!r:.60}."
            )
        return tuple(int(axis) for axis in stored)

    def network(self) -> SegmentationNetwork:
        """The network, on the CPU and in evaluation mode.

        Raises:
            RunError: the weights are not those of the planned network.
        """
        check_spec(self.spec, str(self.file.parent.parent / PLANS_FILE))
        with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten
            network = build_network(self.spec)
        if self.batch_norm:
            _use_batch_norm(network, {})
        weights = {f"net.{_clean(str(key))}": value for key, value in self.content["network_weights"].items()}
        try:
            network.load_state_dict(_with_twins(network, weights))
        except RuntimeError as error:
            detail = str(error).splitlines()[-1].strip()
            raise RunError(
                f"{self.file}: the trainer '{self.content.get('trainer_name')}' made another network than plans.json "
                f"describes ({detail})."
            ) from error
        return freeze(network)


def foreground_values(labels: LabelSpec) -> tuple[int, ...]:
    """The label values of which a cascade's second stage gets a map each: all but background and ``ignore``."""
    return tuple(value for value in labels.values if value not in (0, labels.ignore))


def _check(content: Mapping[str, Any], file: Path) -> None:
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
            "which says what cases the weights have seen."
        )


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
    filled = {}
    for keys in twins.values():
        given = next((weights[key] for key in keys if key in weights), None)
        if given is not None:
            filled.update(dict.fromkeys(keys, given))
    return {**filled, **weights}


def _use_batch_norm(module: nn.Module, made: dict[int, nn.Module]) -> None:
    """Put batch norms in the place of instance norms; a norm that is registered twice stays one module."""
    for name, child in module.named_children():
        if isinstance(child, (nn.InstanceNorm2d, nn.InstanceNorm3d)):
            kind = nn.BatchNorm3d if isinstance(child, nn.InstanceNorm3d) else nn.BatchNorm2d
            setattr(module, name, made.setdefault(id(child), kind(child.num_features, eps=child.eps)))
        else:
            _use_batch_norm(child, made)
