"""Which axis of one patch is which of another, where networks see the same scans turned, transposed or in slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medkd.core.plan import Plan
from medkd.io.orientation import array_axes


@dataclass(frozen=True)
class PatchAxes:
    """How the axes of a patch lie in scans.

    Attributes:
        plan: preprocessing, whose axes end with those of the patch.
        rank: of the patch; a patch of two axes is a slice.
    """

    plan: Plan
    rank: int

    def of_scan(self, axis: int) -> int:
        """The axis of a scan along which an axis of the patch runs: of the patient where the plan turns scans, else of
        the array.
        """
        own = self.plan.transpose[axis + len(self.plan.transpose) - self.rank]
        return own if self.plan.orientation is None else array_axes(self.plan.orientation).index(own)

    def comparable(self, other: PatchAxes) -> bool:
        """Whether axes of both can be told to be the same: not where one plan turns scans and the other does not."""
        return (self.plan.orientation is None) == (other.plan.orientation is None)

    def common(self, axes: Sequence[int], other: PatchAxes, others: Sequence[int]) -> tuple[int, ...]:
        """Those of the ``axes`` that are one of the ``others`` of another patch; none where they cannot be compared."""
        if not self.comparable(other):
            return ()
        wanted = {other.of_scan(axis) for axis in others}
        return tuple(axis for axis in axes if self.of_scan(axis) in wanted)
