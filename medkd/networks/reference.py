"""The sizes at which networks are compared: one channel, 14 classes, a patch of 96³ or 512² voxels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from medkd.core.plan import Architecture
from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, SegmentationNetwork, build_network, fit_patch

PATCHES = {2: (512, 512), 3: (96, 96, 96)}
CLASSES = 14
# nnU-Net's planner: widths double from 32 up to a limit, axes are halved while at least 4 voxels are left
WIDEST = {2: 512, 3: 320}
_FILLING = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.fill_, torch.Tensor.zero_}
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6)


def reference_spec(name: str, rank: int) -> NetworkSpec:
    """The specification of a network at the reference size; planned networks get the shape that nnU-Net plans for this
    patch.

    Args:
        name: registry name.
        rank: 2 or 3.

    Raises:
        RunError: the name is unknown.
    """
    patch = fit_patch(name, PATCHES[rank])
    spec = NetworkSpec(name=name, in_channels=1, num_outputs=CLASSES, patch_size=patch)
    if not NETWORKS[name].planned:
        return spec
    return replace(spec, architecture=_architecture(patch, name.startswith("resenc")))


def build_weightless(spec: NetworkSpec) -> SegmentationNetwork:
    """Build a network on torch's ``meta`` device: shapes without memory, to count what even the largest one costs at
    once.

    Raises:
        RunError: see :func:`medkd.networks.base.build_network`.
    """
    try:
        with without_memory():
            return build_network(spec)
    except RuntimeError:  # MONAI's Swin transformer reads values while it is built
        return build_network(spec).to("meta")


@contextmanager
def without_memory() -> Iterator[None]:
    """Tensors made inside have shapes only, on torch's ``meta`` device, and nothing is spent on their first values."""
    with torch.device("meta"), _NoValues():
        yield


class _NoValues(TorchFunctionMode):
    """Leaves out what sets the values of weights that have none, which torch works through step by step in Python: most
    of the time that a large network takes to be built without memory.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, or give its tensor back as it is where all that it does is to fill one without values."""
        kwargs = kwargs or {}
        if func in _FILLING or getattr(func, "__module__", "") == nn.init.__name__:
            filled: Tensor = args[0] if args else kwargs["tensor"]
            if filled.is_meta:
                return filled
        return func(*args, **kwargs)


def _architecture(patch: tuple[int, ...], residual: bool) -> Architecture:
    rank = len(patch)
    widths = [32]
    size = patch[0]
    while size >= 8:
        size //= 2
        widths.append(min(2 * widths[-1], WIDEST[rank]))
    stages = len(widths)
    halvings = stages - 1
    plain = (2,) * stages
    return Architecture(
        patch_size=patch,
        batch_size=2,
        features_per_stage=tuple(widths),
        kernel_sizes=((3,) * rank,) * stages,
        strides=((1,) * rank, *(((2,) * rank,) * halvings)),
        blocks_encoder=RESIDUAL_BLOCKS[:stages] if residual else plain,
        blocks_decoder=(1 if residual else 2,) * halvings,
    )
