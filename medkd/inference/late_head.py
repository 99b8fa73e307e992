"""The last layer of networks, computed once for a scan instead of once for every tile.

Where a network ends in a convolution of one voxel, logits are a matrix times feature maps, at each voxel. Blending and
averaging over mirrored copies are sums over tiles, so the order can be changed:
``Σ_t w_t (W f_t + b) = W Σ_t w_t f_t + b`` where the weights ``w_t`` add up to one. A network with fewer features than
outputs then needs less of everything: tiles and what is held of a scan have as many maps as the network has features,
whatever the number of structures, and the products are taken once for each voxel and not for each tile over it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medkd.inference.blocks import has_hooks
from medkd.inference.fast_layers import FastConv3d
from medkd.inference.products import is_of_one_voxel
from medkd.networks.base import SegmentationNetwork

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, FastConv3d)  # exact types: a subclass may compute something else
# features for each output; reckoned: with more, the products take longer than what fewer maps spare
_FASTER = 0.6
_LAST_STEPS = ("forward", "_finish", "head")  # of a network; what comes before them may be anything


@dataclass(frozen=True, eq=False)
class LateHead:
    """Networks without their last layers, and what these compute.

    Attributes:
        bodies: each network without its last layer; parameters are shared with the whole one.
        weight: ``(K, channels)``, of all last layers side by side, so that its products are the mean of their logits.
        bias: ``(K, 1)``.
    """

    bodies: tuple[nn.Module, ...]
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, networks: Sequence[nn.Module]) -> LateHead | None:
        """Networks whose logits are averaged, where their last layers can wait: all end in a convolution of one voxel,
        and have fewer features together than outputs; else None.

        Args:
            networks: in evaluation mode. They are not changed; make a new one after their weights have changed, since
                those of last layers are copied.
        """
        bodies: list[nn.Module] = []
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        for network in networks:
            layer = _last_layer(network)
            if layer is None:
                return None
            bodies.append(_without(network, str(network.head_path).split(".")))
            weight = layer.weight.detach().flatten(1).float().cpu()
            weights.append(weight)
            biases.append(weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float().cpu())
        outputs, channels = len(weights[0]), sum(weight.shape[1] for weight in weights)
        if channels >= outputs:
            return None
        bias = torch.stack(biases).mean(0)
        return cls(tuple(bodies), torch.cat(weights, 1) / len(networks), bias[:, None])

    @property
    def is_faster(self) -> bool:
        """Whether its products at each voxel of a scan's own grid cost less than all else that is spared; with more
        features it spares memory alone.
        """
        return self.channels <= _FASTER * len(self.weight)

    @property
    def channels(self) -> int:
        """Feature maps of all networks together."""
        return self.weight.shape[1]

    def features(self, x: Tensor) -> Tensor:
        """``(B, C, *spatial) → (B, channels, *spatial)``, of all networks, one behind the other."""
        if len(self.bodies) == 1:
            found: Tensor = self.bodies[0](x)
            return found
        return torch.cat([body(x) for body in self.bodies], 1)

    def logits(self, features: Tensor) -> Tensor:
        """The mean of the networks' logits, ``(channels, *spatial) → (K, *spatial)`` float32."""
        weight, bias = self.weight.to(features.device), self.bias.to(features.device)
        return torch.addmm(bias, weight, features.flatten(1)).unflatten(1, features.shape[1:])


def _last_layer(network: nn.Module) -> nn.Conv2d | nn.Conv3d | None:
    """The convolution of one voxel that gives a network's logits, where it is known to be the last layer and nobody
    looks at what is left out.
    """
    if not isinstance(network, SegmentationNetwork) or not network.head_path or not _ends_as_ours(network):
        return None
    names = network.head_path.split(".")
    try:
        around = [network.get_submodule(".".join(names[:depth])) for depth in range(len(names) + 1)]
    except AttributeError:  # a subclass has other layers
        return None
    layer = around[-1]
    if type(layer) not in _CONVOLUTIONS or not is_of_one_voxel(layer):  # type: ignore[arg-type]
        return None
    return None if any(map(has_hooks, around)) else layer  # type: ignore[return-value]


def _ends_as_ours(network: SegmentationNetwork) -> bool:
    """Whether what a network does at last is medkd's code, which is known to end in the head: another's subclass may do
    more with the logits.
    """
    if "forward" in vars(network):
        return False
    own = [getattr(type(network), name, network.forward).__module__ for name in _LAST_STEPS]
    return all(module.startswith("medkd.") for module in own)


def _without(module: nn.Module, path: Sequence[str]) -> nn.Module:
    """A module in which the one at a path gives what it gets; copies lie along the path alone, the rest is shared."""
    if not path:
        return nn.Identity()
    name, *deeper = path
    copied = copy.copy(module)
    copied._modules = {**module._modules, name: _without(module.get_submodule(name), deeper)}
    return copied
