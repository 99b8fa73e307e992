"""Batch normalisation whose statistics are those of the whole batch, where processes have a part of it each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medkd.training.ranks import Ranks


def share_norms(network: nn.Module, ranks: Ranks) -> None:
    """Let every batch normalisation of a network take its statistics over the samples of all ranks while it is trained.

    The modules stay what they are, and so do weights and their names; torch's own ``SyncBatchNorm`` would take their
    places, and does not run on CPUs.
    """
    if ranks.alone:
        return
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = partial(_forward, module, module.forward, ranks)  # type: ignore[method-assign]


def _forward(module: Any, alone: Callable[[Tensor], Tensor], ranks: Ranks, x: Tensor) -> Tensor:
    if not (module.training or module.running_mean is None):
        return alone(x)
    with torch.autocast(x.device.type, enabled=False):
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        out = _normalised(module, ranks, exact).to(x.dtype)
    for name in ("drop", "act"):  # of timm's, which are normalisation and activation in one
        further = getattr(module, name, None)
        out = out if further is None else further(out)
    return out


def _normalised(module: Any, ranks: Ranks, x: Tensor) -> Tensor:
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = (1, -1, *[1] * (x.ndim - 2))
    count = ranks.count * x.numel() // x.shape[1]
    mean = _Sum.apply(x.sum(axes), ranks) / count
    centred = x - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(axes), ranks) / count
    if module.training and module.running_mean is not None:
        _remember(module, mean.detach(), variance.detach() * count / max(count - 1, 1))
    out = centred * (variance + module.eps).rsqrt().view(shape)
    return out if module.weight is None else out * module.weight.view(shape) + module.bias.view(shape)


@torch.no_grad()
def _remember(module: Any, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics as torch does."""
    module.num_batches_tracked += 1
    share = 1.0 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
    module.running_mean.lerp_(mean.to(module.running_mean.dtype), share)
    module.running_var.lerp_(variance.to(module.running_var.dtype), share)


class _Sum(torch.autograd.Function):
    """The sum over the ranks. Each sends its own samples' loss back, so a statistic's gradient is a sum, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        """The sum, on every rank."""
        ctx.ranks = ranks
        return ranks.sum(x.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The sum of what every rank's outputs want."""
        return ctx.ranks.sum(gradients[0].clone().contiguous()), None
