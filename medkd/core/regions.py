"""Which label each region paints: the order that gives every voxel back the regions that it lies in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from medkd.core.errors import DataError

Region = tuple[str, tuple[int, ...]]
"""Name and label values."""

_MOST_PERMUTED = 6
"""Regions of which every sequence is tried; of more, only the one from the largest to the smallest region."""


def check_order(regions: Sequence[Region], order: Sequence[int], where: str) -> None:
    """See to it that a perfect prediction, painted region by region, lies in the same regions as the label map.

    A voxel of value v is predicted to lie in all regions that hold v, and the last of them in the file decides which
    label is painted there. That label must lie in the same regions as v, or the written label map scores badly however
    good the network is.

    Args:
        regions: in the order of ``dataset.json``, without the background.
        order: ``regions_class_order``, the label that each region paints.
        where: the file, for the error text.

    Raises:
        DataError: it does not; the text names the right order, or the right sequence of regions, where there is one.
    """
    fault = _fault(regions, order)
    if fault is None:
        return
    right = _right_order(regions, order)
    if right is not None:
        action = f"set 'regions_class_order' to {right}"
    else:
        action = _other_sequence(regions, order)
    raise DataError(f"{where}: 'regions_class_order' {list(order)} {fault}; {action}.")


def _fault(regions: Sequence[Region], order: Sequence[int]) -> str | None:
    """What painting in this order does wrong, for the error text; None where it is right."""
    known = _values(regions)
    for value in order:
        if value not in known:
            return f"paints the label {value}, which lies in no region"
    for value in known:
        inside = _regions_of(value, regions)
        painted = order[inside[-1]]
        if _regions_of(painted, regions) != inside:
            names = " and ".join(regions[index][0] for index in inside)
            return f"paints voxels of label {value} (in {names}) as {painted}, which lies in other regions"
    return None


def _right_order(regions: Sequence[Region], order: Sequence[int]) -> list[int] | None:
    """The label that each region must paint in this sequence of regions; None where none will do."""
    right: list[int] = []
    for index, (_, values) in enumerate(regions):
        decided = [value for value in values if _regions_of(value, regions)[-1] == index]
        allowed = decided or values  # of a region that decides nothing later ones paint over all
        right.append(order[index] if order[index] in allowed else allowed[0])
    return right if _fault(regions, right) is None else None


def _other_sequence(regions: Sequence[Region], order: Sequence[int]) -> str:
    """What to do where no order will do for the regions as they follow each other in the file."""
    largest_first = sorted(regions, key=lambda region: -len(region[1]))
    candidates = [largest_first]
    if len(regions) <= _MOST_PERMUTED:
        candidates += [list(sequence) for sequence in permutations(regions)]
    for sequence in candidates:
        right = _right_order(sequence, [values[0] for _, values in sequence])
        if right is not None:
            names = ", ".join(f"'{name}'" for name, _ in sequence)
            return (
                f"list the regions in the order {names} and set 'regions_class_order' to {right} (a network that was "
                "trained with its outputs in another order cannot be used)"
            )
    return (
        "no order can be right, since regions overlap without one lying in the other: add a region for the labels that "
        "they have in common, behind them"
    )


def _values(regions: Sequence[Region]) -> list[int]:
    found: set[int] = set()
    for _, values in regions:
        found.update(values)
    return sorted(found)


def _regions_of(value: int, regions: Sequence[Region]) -> list[int]:
    """Places of the regions that hold a label value."""
    return [index for index, (_, values) in enumerate(regions) if value in values]
