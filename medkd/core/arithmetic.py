"""Whether torch computes in bf16 what it should on this processor, asked once before anything relies on it."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_MAPS = ((2, 3, 4), (2, 6, 8), (4, 7, 5), (10, 14, 10))  # some builds are wrong on the smallest alone
_LARGEST_ERROR = 0.03  # root mean square, as a share of the right one's; rounding to eight bits gives a tenth of it


def wrong_arithmetic(precision: str, device: torch.device, *, training: bool = True) -> str:
    """What to know of bf16 on a CPU where torch computes known convolutions wrong in it; nothing where it does not.

    It is no reason to refuse: where a network has such feature maps, the training stops at the first absurd gradient.

    Args:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        device: that is going to compute.
        training: whether gradients count, too.
    """
    wrong = _wrong_maps(training) if precision == "bf16" and device.type == "cpu" else ()
    if not wrong:
        return ""
    remedy = "should the training stop at a gradient, use --precision fp32" if training else "use --precision fp32"
    sizes = ", ".join(" x ".join(map(str, size)) for size in wrong)
    return (
        f"torch {torch.__version__} computes convolutions of feature maps of {sizes} voxels wrong in bf16 on this "
        f"processor; {remedy}"
    )


@cache
def _wrong_maps(training: bool) -> tuple[tuple[int, ...], ...]:
    """Sizes of known feature maps of which the output, or of a training a gradient, is wrong."""
    return tuple(size for size in _MAPS if not _error(size, training) <= _LARGEST_ERROR)  # NaN is wrong, too


def _error(size: tuple[int, int, int], training: bool) -> float:
    """The error of a known convolution's output, or the largest of it and the gradients."""
    numbers = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=numbers) for shape in ((2, 32, *size), (32, 32, 3, 3, 3)))
    slope = torch.randn((2, 32, *size), generator=numbers)
    errors = []
    for found, right in zip(_computed(x, weight, slope, True), _computed(x, weight, slope, False), strict=True):
        errors.append((found - right).square().mean().sqrt() / right.square().mean().sqrt())
    return float(torch.stack(errors if training else errors[:1]).max())


def _computed(x: Tensor, weight: Tensor, slope: Tensor, half: bool) -> tuple[Tensor, ...]:
    """Output and gradients of a convolution, as float64."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        x, weight = (value.clone().requires_grad_() for value in (x, weight))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            y = F.conv3d(x, weight, padding=1)
        gradients = torch.autograd.grad(y, (x, weight), slope.to(y.dtype))
    return tuple(value.detach().double() for value in (y, *gradients))
