"""The trained networks of a run folder, ready for prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import medkd.networks  # noqa: F401  (enters all networks into the registry)
from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import RunError
from medkd.core.labels import LabelSpec
from medkd.core.plan import Configuration, Plan
from medkd.core.run import BEST, FINAL, NetworkSpec, RunFolder
from medkd.networks.base import NETWORKS, SegmentationNetwork, build_network

CHECKPOINTS = {"final": FINAL, "best": BEST}


@dataclass(frozen=True)
class TrainedModel:
    """Networks and all that is needed to predict with them.

    Attributes:
        networks: one per fold, on the CPU and in evaluation mode.
        plan: preprocessing and axis order.
        configuration: the configuration that they were trained on.
        labels: what their outputs mean.
        patch_size: voxels per axis, two values for a 2D network.
        mirror_axes: axes of the patch that training mirrored.
        folds: their names.
    """

    networks: Sequence[SegmentationNetwork]
    plan: Plan
    configuration: Configuration
    labels: LabelSpec
    patch_size: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    folds: tuple[str, ...]


def load_run(run: RunFolder, folds: Sequence[int | str] | None = None, *, checkpoint: str = "final") -> TrainedModel:
    """The trained model of a run folder; see :func:`load_networks`."""
    names = trained_folds(run, checkpoint) if folds is None else [str(fold) for fold in folds]
    networks = load_networks(run, names, checkpoint=checkpoint)
    description = run.run
    configuration = run.plan.configuration(description.configuration)
    patch = description.network.patch_size
    return TrainedModel(
        networks, run.plan, configuration, run.dataset.labels, patch, description.mirror_axes, tuple(names)
    )


def trained_folds(run: RunFolder, checkpoint: str = "final") -> list[str]:
    """The folds of a run that have the checkpoint, ``"final"`` or ``"best"``, as text."""
    return sorted(path.parent.name.removeprefix("fold_") for path in run.path.glob(f"fold_*/{CHECKPOINTS[checkpoint]}"))


def load_networks(
    run: RunFolder, folds: Sequence[int | str] | None = None, *, checkpoint: str = "final"
) -> list[SegmentationNetwork]:
    """Build the run's network once per fold and load the folds' weights, on the CPU and in evaluation mode.

    Args:
        run: a run folder that was read.
        folds: 0-4 or ``"all"``; None takes every fold that has the checkpoint.
        checkpoint: ``"final"`` or ``"best"``.

    Raises:
        RunError: no fold, or one that was asked for, was trained, or weights and network disagree.
    """
    trained = trained_folds(run, checkpoint)
    folds = trained if folds is None else [str(fold) for fold in folds]
    if not folds:
        raise RunError(
            f"{run.path}: no fold has a {CHECKPOINTS[checkpoint]}; finish the training of at least one fold first."
        )
    for fold in folds:
        if fold not in trained:
            known = ", ".join(trained) or "none"
            raise RunError(
                f"{run.path}: fold {fold} has no {CHECKPOINTS[checkpoint]}; the folds that have one: {known}."
            )
    NETWORKS.require(run.run.network.name, run.run.modules.get(run.run.network.name), str(run.path))
    paths = [run.fold(fold) / CHECKPOINTS[checkpoint] for fold in folds]
    return [load_weights(run.run.network, load_checkpoint(path).get("network", {}), str(path)) for path in paths]


def load_weights(spec: NetworkSpec, weights: dict[str, Tensor], where: str) -> SegmentationNetwork:
    """Build ``spec``'s network in evaluation mode with these weights; ``where`` names their file in error texts.

    Raises:
        RunError: a weight is missing, left over or of another shape.
    """
    with torch.random.fork_rng(
        devices=[]
    ):  # the initial weights are overwritten: they must not move the global generator
        network = build_network(spec)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise RunError(
            f"{where} does not fit the network '{spec.name}' of run.json ({detail}); was one of the files replaced?"
        ) from error
    return freeze(network)


def freeze(network: SegmentationNetwork) -> SegmentationNetwork:
    """Set evaluation mode, in which a network returns full-resolution logits only, and switch off gradients."""
    return network.eval().requires_grad_(False)


def mean_logits(networks: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Mean of the networks' logits for ``x`` ``(B, C, *spatial)``, in float32 when there are several.

    Averaging per tile equals averaging whole volumes, since blending is linear; the volume is then accumulated once for
    all folds.
    """
    if len(networks) == 1:
        return networks[0](x)
    total = networks[0](x).float()
    for network in networks[1:]:
        total = total + network(x)
    return total / len(networks)
