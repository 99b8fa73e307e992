"""Whether torch computes in bf16 what it should on this processor, asked once before a training relies on it."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.errors import RunError

_MAPS = ((2, 3, 4), (2, 6, 8), (4, 7, 5), (10, 14, 10))  # some builds were wrong on the smallest alone
_LARGEST_ERROR = 0.03  # root mean square, as a share of the right one's; rounding to eight bits gives a tenth of it


def check_arithmetic(precision: str, device: torch.device) -> None:
    """Refuse bf16 on a CPU where torch computes convolutions or their gradients wrong in it.

    Raises:
        RunError: it does.
    """
    if precision == "bf16" and device.type == "cpu" and (worst := _worst_error()) > _LARGEST_ERROR:
        raise RunError(
            f"torch {torch.__version__} computes convolutions wrong in bf16 on this processor (known ones are off by "
            f"{100 * worst:.3g} % where {100 * _LARGEST_ERROR:g} % are allowed); use --precision fp32."
        )


@cache
def _worst_error() -> float:
    """Of known convolutions: the largest error of output and gradients; not a number counts as infinite."""
    return max(_error(size) for size in _MAPS)


def _error(size: tuple[int, int, int]) -> float:
    numbers = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=numbers) for shape in ((2, 32, *size), (32, 32, 3, 3, 3)))
    slope = torch.randn((2, 32, *size), generator=numbers)
    worst = 0.0
    for found, right in zip(_computed(x, weight, slope, True), _computed(x, weight, slope, False), strict=True):
        error = float((found - right).square().mean().sqrt() / right.square().mean().sqrt())
        worst = max(worst, error if error == error else float("inf"))
    return worst


def _computed(x: Tensor, weight: Tensor, slope: Tensor, half: bool) -> tuple[Tensor, ...]:
    """Output and gradients of a convolution, as float64."""
    x, weight = (value.clone().requires_grad_() for value in (x, weight))
    with torch.enable_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            y = F.conv3d(x, weight, padding=1)
        gradients = torch.autograd.grad(y, (x, weight), slope.to(y.dtype))
    return tuple(value.detach().double() for value in (y, *gradients))
