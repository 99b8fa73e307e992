"""Networks with their weights, ready for prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import medkd.networks  # noqa: F401  (enters all networks into the registry)
from medkd.core.errors import RunError
from medkd.core.run import NetworkSpec
from medkd.models.limits import check_spec
from medkd.networks.base import SegmentationNetwork, build_network


def load_weights(spec: NetworkSpec, weights: dict[str, Tensor], where: str) -> SegmentationNetwork:
    """Build ``spec``'s network in evaluation mode with these weights; ``where`` names their file in error texts.

    Raises:
        RunError: a weight is missing, left over or of another shape.
    """
    check_spec(spec, where)
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
