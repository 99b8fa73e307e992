"""Detail consistent distillation: features are compared in the details of their wavelet transform."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Target
from medkd.distillation.base import METHODS, Context, Variant
from medkd.distillation.features.standardize import spread
from medkd.distillation.options import positive
from medkd.distillation.pairs import WEAK, AdaptedMethod

HAAR = (2**-0.5, 2**-0.5)
DB4 = (
    *(-0.010597401785069032, 0.0328830116668852, 0.030841381835560764, -0.18703481171909309),
    *(-0.027983769416859854, 0.6308807679298589, 0.7148465705529157, 0.2303778133088965),
)
"""Low-pass analysis filters (Daubechies, CPAM 41(7), 1988, doi:10.1002/cpa.3160410705), four vanishing moments."""

_PAPER_LEVELS, _LEVELS = 3, 2
Bands = dict[tuple[int, ...], Tensor]


def high_pass(low: tuple[float, ...]) -> tuple[float, ...]:
    """The quadrature mirror of a low-pass analysis filter.

    >>> [round(tap, 3) for tap in high_pass(HAAR)]
    [-0.707, 0.707]
    """
    count = len(low)
    return tuple((-1) ** (place + 1) * low[count - 1 - place] for place in range(count))


def analyse(maps: Tensor, low: tuple[float, ...]) -> Bands:
    """One level of the separable wavelet transform: for every axis the low (0) or the high band (1).

    Args:
        maps: ``(B, C, *spatial)``; sides are padded with zeros by one tap less than the filter has.
        low: low-pass filter of an even number of taps.

    Returns:
        ``(0 or 1 per axis)`` → ``(B, C, *about half)``.
    """
    bands: Bands = {(): maps}
    for axis in range(2, maps.ndim):
        halved: Bands = {}
        for key, band in bands.items():
            for place, taps in enumerate((low, high_pass(low))):
                halved[(*key, place)] = _filtered(band, axis, taps)
        bands = halved
    return bands


def synthesise(bands: Bands, low: tuple[float, ...], size: tuple[int, ...]) -> Tensor:
    """The maps that some bands alone describe, as the authors' code puts them together: with the analysis filters
    turned round, which for all but symmetric ones is not the inverse of :func:`analyse`.

    Args:
        bands: of :func:`analyse`, some may be left out.
        low: its filter.
        size: of the maps.
    """
    rank = len(size)
    for axis in reversed(range(rank)):
        joined: Bands = {}
        for key, band in bands.items():
            taps = (low, high_pass(low))[key[-1]]
            part = _expanded(band, axis + 2, taps[::-1], size[axis])
            shorter = key[:-1]
            joined[shorter] = joined[shorter] + part if shorter in joined else part
        bands = joined
    return bands[()]


def _filtered(maps: Tensor, axis: int, taps: tuple[float, ...]) -> Tensor:
    """Correlation along an axis, every second value; the taps stay numbers, so that no device is asked to wait."""
    rows = maps.movedim(axis, -1)
    padding = len(taps) - 1 if len(taps) > 2 or rows.shape[-1] % 2 else 0
    padded = F.pad(rows, (padding, padding))
    count = (padded.shape[-1] - len(taps)) // 2 + 1
    parts = [tap * padded[..., place : place + 2 * count - 1 : 2] for place, tap in enumerate(taps)]
    return torch.stack(parts).sum(0).movedim(-1, axis)


def _expanded(maps: Tensor, axis: int, taps: tuple[float, ...], size: int) -> Tensor:
    """The transposed correlation along an axis, cut to a size."""
    rows = maps.movedim(axis, -1)
    count = rows.shape[-1]
    wide = rows.new_zeros((*rows.shape[:-1], 2 * count - 2 + len(taps)))
    for place, tap in enumerate(taps):
        wide[..., place : place + 2 * count - 1 : 2] += tap * rows
    cut = len(taps) - 1
    return wide[..., cut : wide.shape[-1] - cut][..., :size].movedim(-1, axis)


@METHODS.register("dcd")
class DCD(AdaptedMethod):
    """Detail consistent distillation: the student's adapted map and the teacher's agree in the details of their wavelet
    transform, level by level; the coarse approximation is left to the student.

    With ``d = A S − T`` (the transform is linear, so one of the difference suffices), ``W_b`` the coefficients of a
    band and ``n`` the number of values of ``d`` at a level::

        L = w · mean_maps mean_levels Σ_{b is no low band} ‖W_b d‖² / (n var(T))

    with Haar's wavelet and two levels, fewer for maps that are too small. ``variant="paper"`` is the released
    configuration for BraTS: ``db4``, three levels, all bands but the lowest and the highest, the squared error of the
    maps that the bands are put together to, not divided by the teacher's variance, ``w = 0.01``.

    Citation: M. Fan, B. Geng, X. Xiao, T. Wang, S. Mei, P. Che, X. Jiang, Q. Lan, 2026, arXiv 2605.26382.

    Args:
        context: taps, outputs and geometry.
        weight: ``w``; None means 0.2, 0.01 in the paper variant.
        taps: which pairs, see :func:`medkd.distillation.pairs.choose_pairs`.
        levels: of the transform; None means 2, 3 in the paper variant.
        variant: ``default`` or ``paper``.

    Raises:
        MethodError: the networks share no such taps, or a parameter is out of its range.
    """

    citation = "Fan, Geng, Xiao, Wang, Mei, Che, Jiang, Lan; 2026; arXiv 2605.26382"
    per_logit, per_feature = 0.0, 12.0
    bound = "wavelet bands of the difference of the features"

    def __init__(
        self,
        context: Context,
        weight: float | None = None,
        taps: str = "deep",
        levels: int | None = None,
        variant: Variant = "default",
    ) -> None:
        self.released = variant == "paper"
        super().__init__(context, "dcd", taps, gain=1.0 if self.released else WEAK)
        self.weight = positive("dcd", "weight", (0.01 if self.released else 0.2) if weight is None else weight)
        self.levels = (_PAPER_LEVELS if self.released else _LEVELS) if levels is None else levels
        if self.levels < 1:
            raise MethodError(f"dcd.levels expects a whole number of at least 1, found {self.levels}.")
        self.filter = DB4 if self.released else HAAR

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """One term, ``dcd``."""
        found = []
        for ours, theirs in self.adapted(student, teacher):
            error = self._error(ours - theirs)
            found.append(error if self.released else error / spread(theirs, ours))
        return {"dcd": self.weight * self.joined(found)}

    def _error(self, difference: Tensor) -> Tensor:
        """Mean over the levels; at least one, whatever the size."""
        errors: list[Tensor] = []
        approximation = difference
        for _ in range(self.levels):
            thin = min(approximation.shape[2:]) < 2
            if errors and thin and not self.released:
                break
            bands = analyse(approximation, self.filter)
            details = {key: band for key, band in bands.items() if self._is_detail(key)}
            if self.released and not thin:
                size = tuple(approximation.shape[2:])
                errors.append(synthesise(details, self.filter, size).square().mean())
            else:  # a map of one voxel is put together to none at all
                squares = torch.stack([band.square().sum() for band in details.values()])
                errors.append(squares.sum() / approximation.numel())
            approximation = bands[(0,) * self.context.rank]
        return torch.stack(errors).mean()

    def _is_detail(self, key: tuple[int, ...]) -> bool:
        """Neither the approximation nor, in the paper variant, the band that is high along every axis."""
        return any(key) and not (self.released and all(key))
