"""In which precision networks are computed, and whether torch does so rightly and fast on this processor, asked once
before anything relies on it."""

from __future__ import annotations

import time
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.precision import Precision, PrecisionChoice

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_TIMED_MAP = (10, 14, 10)
_TURNS = 3
_SLOW = 1.5  # times fp32's processor time; processors that compute in half precision need about half of it
_MAPS = ((2, 3, 4), (2, 6, 8), (4, 7, 5), (10, 14, 10))  # some builds are wrong on the smallest alone
_LARGEST_ERROR = 0.03  # root mean square, as a share of the right one's; rounding to eight bits gives a tenth of it


def chosen_precision(asked: PrecisionChoice | None, device: torch.device) -> Precision:
    """The precision in which networks are computed on a device.

    Args:
        asked: a precision, which is taken as it is; ``auto``: bf16 on a CPU that is faster in it than in fp32, else as
            without; None: fp16 on CUDA and fp32 elsewhere.
        device: that is going to compute.

    >>> chosen_precision("bf16", torch.device("cpu")), chosen_precision(None, torch.device("cpu"))
    ('bf16', 'fp32')
    """
    if asked is None or asked == "auto":
        if device.type == "cuda":
            return "fp16"
        faster = asked == "auto" and device.type == "cpu" and half_cost("bf16") < 1
        return "bf16" if faster else "fp32"
    return asked


def slow_arithmetic(precision: str, device: torch.device) -> str:
    """A sentence where half precision takes a CPU longer than fp32; empty where it does not.

    Processors that do not compute in it take known convolutions in it 20 times as long.

    Args:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        device: that is going to compute.
    """
    if precision == "fp32" or device.type != "cpu" or half_cost(precision) < _SLOW:
        return ""
    return (
        f"this processor is slow in {precision}: a known convolution takes {half_cost(precision):.1f} times as long as "
        "in fp32; use --precision fp32, or auto"
    )


@cache
def half_cost(precision: str) -> float:
    """Processor time of a known convolution with its gradients in half precision on the CPU, as a multiple of fp32's.

    Args:
        precision: ``bf16`` or ``fp16``.
    """
    numbers = _known_numbers(_TIMED_MAP)
    seconds = {}
    for dtype in (_DTYPES[precision], None):
        turns = []
        for _ in range(_TURNS):
            begun = time.process_time()  # not the clock, which other programs would stretch
            _computed(*numbers, dtype)
            turns.append(time.process_time() - begun)
        seconds[dtype] = min(turns)
    return seconds[_DTYPES[precision]] / seconds[None]


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
    numbers = _known_numbers(size)
    errors = []
    for found, right in zip(_computed(*numbers, torch.bfloat16), _computed(*numbers, None), strict=True):
        errors.append((found - right).square().mean().sqrt() / right.square().mean().sqrt())
    return float(torch.stack(errors if training else errors[:1]).max())


def _known_numbers(size: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Feature maps, the weights of a convolution, and the gradient of its output."""
    numbers = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=numbers) for shape in ((2, 32, *size), (32, 32, 3, 3, 3)))
    return x, weight, torch.randn((2, 32, *size), generator=numbers)


def _computed(x: Tensor, weight: Tensor, slope: Tensor, half: torch.dtype | None) -> tuple[Tensor, ...]:
    """Output and gradients of a convolution, as float64; None computes in fp32."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        x, weight = (value.clone().requires_grad_() for value in (x, weight))
        with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
            y = F.conv3d(x, weight, padding=1)
        gradients = torch.autograd.grad(y, (x, weight), slope.to(y.dtype))
    return tuple(value.detach().double() for value in (y, *gradients))
