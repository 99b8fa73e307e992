"""Ridge regression of a teacher's outputs on what a student's convolution sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 1e-3
"""Pull towards the teacher's own kernels, relative to the mean square of the inputs."""


@dataclass(frozen=True)
class Fit:
    """How well a layer of the student repeats the channels of the teacher's that it was given: ``1 − residual /
    variance``.
    """

    layer: str
    explained: float


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a regression found.

    Attributes:
        weights: ``(P, C)``.
        bias: ``(C,)``.
        mean: of the targets; zero without an intercept.
        fitted: variance of what they give, ``(C,)``.
        residual: variance of what they miss.
        variance: of the targets; without an intercept around zero.
    """

    weights: Tensor
    bias: Tensor
    mean: Tensor
    fitted: Tensor
    residual: Tensor
    variance: Tensor


class Regression:
    """Ridge regression; while there are fewer rows than inputs they are kept, then their sums alone, so that the inputs
    of one image are in memory at a time.

    Args:
        prior: ``(P, C)`` weights to stay near to.
        intercept: whether there is a bias.
    """

    def __init__(self, prior: Tensor, *, intercept: bool = True) -> None:
        self.prior = prior
        self.intercept = intercept
        self.count = 0
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._sums: _Sums | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Inputs ``(N, P)`` and targets ``(N, C)``."""
        self.count += len(x)
        if self._sums is not None:
            self._sums.add(x, y)
            return
        self._rows.append((x, y))
        if self.count >= len(self.prior):
            self._sums = _Sums(self.prior)
            for kept in self._rows:
                self._sums.add(*kept)
            self._rows = []

    def solve(self) -> Solution:
        """The weights that fit best, with a pull towards the prior."""
        return self._from_rows() if self._sums is None else self._from_sums(self._sums)

    def _from_sums(self, sums: _Sums) -> Solution:
        count = self.count
        centre = 1.0 if self.intercept else 0.0
        mean_x, mean_y = centre * sums.x / count, centre * sums.y / count
        gram = sums.gram - count * torch.outer(mean_x, mean_x)
        cross = sums.cross - count * torch.outer(mean_x, mean_y)
        pulled = gram.clone()
        pulled.diagonal().add_(_ridge(gram.diagonal().sum(), len(gram)))
        missing = cross - gram @ self.prior
        weights = self.prior + torch.cholesky_solve(missing, torch.linalg.cholesky(pulled))
        variance = sums.square - count * mean_y.square()
        fitted = (weights * (gram @ weights)).sum(0)
        residual = variance - 2 * (weights * cross).sum(0) + fitted
        bias = mean_y - mean_x @ weights
        return Solution(
            weights=weights,
            bias=bias,
            mean=mean_y,
            fitted=fitted / count,
            residual=residual / count,
            variance=variance / count,
        )

    def _from_rows(self) -> Solution:
        """The same from the products of rows with rows, which are fewer."""
        count = max(self.count, 1)
        x = torch.cat([self.prior.new_zeros(0, len(self.prior)), *(x for x, _ in self._rows)])
        y = torch.cat([self.prior.new_zeros(0, self.prior.shape[1]), *(y for _, y in self._rows)])
        centre = 1.0 if self.intercept else 0.0
        mean_x, mean_y = centre * x.sum(0) / count, centre * y.sum(0) / count
        x, y = x - mean_x, y - mean_y
        pulled = x @ x.T
        pulled.diagonal().add_(_ridge(pulled.diagonal().sum(), len(self.prior)))
        missing = torch.cholesky_solve(y - x @ self.prior, torch.linalg.cholesky(pulled))
        weights = self.prior + x.T @ missing
        given = x @ weights
        squares = (given.square(), (y - given).square(), y.square())
        fitted, residual, variance = (values.sum(0) / count for values in squares)
        return Solution(
            weights=weights,
            bias=mean_y - mean_x @ weights,
            mean=mean_y,
            fitted=fitted,
            residual=residual,
            variance=variance,
        )


class _Sums:
    """Of inputs, targets and their products."""

    def __init__(self, prior: Tensor) -> None:
        inputs, outputs = prior.shape
        self.gram = prior.new_zeros(inputs, inputs)
        self.cross = torch.zeros_like(prior)
        self.x = prior.new_zeros(inputs)
        self.y = prior.new_zeros(outputs)
        self.square = prior.new_zeros(outputs)

    def add(self, x: Tensor, y: Tensor) -> None:
        self.gram += x.T @ x
        self.cross += x.T @ y
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.square += y.square().sum(0)


def _ridge(trace: Tensor, inputs: int) -> float:
    return RIDGE * float(trace) / inputs + 1e-9


def neighbourhoods(conv: Any, places: Tensor, given: Tensor) -> Tensor:
    """What a convolution sees of a map ``(C, *size)`` for its outputs at ``(N, n)`` places: ``(N, P)``, ``P`` channels
    times kernel.
    """
    both_sides: list[int] = []
    for padding in reversed(conv.padding):
        both_sides += [padding, padding]
    padded = F.pad(given, both_sides)
    corner = places * torch.tensor(conv.stride, device=given.device)
    columns = []
    for place in product(*map(range, conv.kernel_size)):
        shift = torch.tensor(place, device=given.device)
        columns.append(at(padded, corner + shift))
    return torch.stack(columns, 2).flatten(1).double()


def at(values: Tensor, places: Tensor) -> Tensor:
    """``(N, C)`` values of a map ``(C, *size)`` at ``(N, n)`` places."""
    index: tuple[Any, ...] = (slice(None), *places.unbind(1))
    return values[index].T


def unravel(flat: Tensor, size: Sequence[int]) -> Tensor:
    """Flat places to ``(N, n)`` coordinates."""
    return torch.stack(torch.unravel_index(flat, tuple(size)), 1)
