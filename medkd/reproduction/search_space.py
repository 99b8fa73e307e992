"""What a search may vary: parameters of methods between bounds, or from choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from medkd.core.errors import DataError

LOG = "log"


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched.

    Attributes:
        parameters: ``method.parameter`` → ``[low, high]``, ``[low, high, "log"]``, or texts to choose from.
        trials: how many values are tried.
        folds: inner folds, 1 to 5, on which each is judged.
    """

    parameters: Mapping[str, tuple[Any, ...]]
    trials: int
    folds: int = 1


def check_search(search: Search, where: str) -> None:
    """Refuse what cannot be searched.

    Raises:
        DataError: the first thing that is wrong.
    """
    if not search.parameters:
        raise DataError(f"{where}: 'parameters' is empty; name a METHOD.PARAMETER with its bounds.")
    if search.trials < 1 or not 1 <= search.folds <= 5:
        raise DataError(
            f"{where}: expected 'trials' of at least 1 and 'folds' of 1 to 5, found {search.trials} and {search.folds}."
        )
    for name, values in search.parameters.items():
        if "." not in name:
            raise DataError(f"{where}: expected METHOD.PARAMETER, for example kd.temperature, found '{name:.60}'.")
        if not (is_range(values) or _are_choices(values)):
            raise DataError(
                f'{where}: {name}: expected [low, high] or [low, high, "log"] with low < high (above 0 for log), or '
                f"two texts or more to choose from, found {list(values)!r:.100}."
            )


def is_range(values: Sequence[Any]) -> bool:
    """Whether values are bounds, with ``log`` or without, and not choices."""
    numbers, scale = values[:2], values[2:]
    if len(numbers) != 2 or list(scale) not in ([], [LOG]):
        return False
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in numbers):
        return False
    low, high = numbers
    return isfinite(low) and isfinite(high) and low < high and (not scale or low > 0)


def _are_choices(values: Sequence[Any]) -> bool:
    if len(values) < 2 or not all(isinstance(value, str) for value in values):
        return False
    return len(set(values)) == len(values) and not any(mark in value for value in values for mark in ",:")
