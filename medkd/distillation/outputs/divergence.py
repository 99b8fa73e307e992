"""Per-voxel divergences between predicted distributions, shared by the methods that compare logits."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 2**16  # numbers of a block and thread: a few of them fit into a core's cache


def softmax_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``Σ_c p_T log(p_T / p_S)`` per voxel, ``p = softmax(z / τ)`` over channels.

    Args:
        student: logits ``(B, K, *spatial)``.
        teacher: logits of the same shape, usually without gradient.
        temperature: ``τ``.

    Returns:
        ``(B, 1, *spatial)``, non-negative up to rounding.
    """
    if teacher.requires_grad:
        log_s, log_t = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
        return (log_t.exp() * (log_t - log_s)).sum(1, keepdim=True)
    found: Tensor = _SoftmaxKL.apply(student, teacher, temperature)
    return found


class _SoftmaxKL(torch.autograd.Function):
    """:func:`softmax_kl` of a teacher without gradient, and with it that of the student's logits, ``(p_S − p_T) / τ``.

    On the CPU a block of voxels is taken at a time, so that the logits are read once, and everything between them and
    the two results stays in cache.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """The divergence; what the gradient needs is kept where one is wanted."""
        shape = (*student.shape[:2], prod(student.shape[2:]))
        found = student.new_empty(shape[0], 1, shape[2])
        apart = student.new_empty(shape) if ctx.needs_input_grad[0] else None
        ours, theirs = student.reshape(shape), teacher.reshape(shape)
        for place in _blocks(student, *shape):
            own, other = ours[place], theirs[place]
            if temperature != 1:
                own, other = own / temperature, other / temperature
            log_s, log_t = F.log_softmax(own, 1), F.log_softmax(other, 1)
            p_t = log_t.exp()
            found[place] = log_t.sub_(log_s).mul_(p_t).sum(1, keepdim=True)
            if apart is not None:
                torch.sub(log_s.exp_(), p_t, out=apart[place])
        ctx.temperature = temperature
        if apart is not None:
            ctx.save_for_backward(apart.view(student.shape))
        return found.view(student.shape[0], 1, *student.shape[2:])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """The teacher has none."""
        (apart,) = ctx.saved_tensors
        return apart * (gradient / ctx.temperature), None, None


def _blocks(like: Tensor, samples: int, channels: int, places: int) -> Iterator[tuple[slice, slice, slice]]:
    """The parts of ``(samples, channels, places)`` that are taken one after another; all at once but on the CPU."""
    every, most = slice(None), _BLOCK * torch.get_num_threads()
    if like.device.type != "cpu" or like.numel() <= most:
        yield every, every, every
        return
    length = max(1, most // max(channels, 1))
    for sample in range(samples):
        for start in range(0, places, length):
            yield slice(sample, sample + 1), every, slice(start, start + length)


def binary_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence between the Bernoulli distributions of every channel, ``p = sigmoid(z / τ)``.

    Computed as cross-entropy minus the teacher's entropy, both from logits, so that saturated probabilities stay exact.

    Returns:
        ``(B, K, *spatial)``.
    """
    s, t = student / temperature, teacher / temperature
    p = torch.sigmoid(t)
    cross = F.binary_cross_entropy_with_logits(s, p, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(t, p, reduction="none")


def voxel_kl(student: Tensor, teacher: Tensor, regions: bool, temperature: float = 1.0) -> Tensor:
    """Divergence per voxel ``(B, 1, *spatial)``: :func:`softmax_kl`, or :func:`binary_kl` summed over regions."""
    if regions:
        return binary_kl(student, teacher, temperature).sum(1, keepdim=True)
    return softmax_kl(student, teacher, temperature)
