"""Warning of teachers that have nothing to teach."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from medkd.core.errors import DataError
from medkd.core.files import read_json
from medkd.models.guard import Teacher

SUMMARY = "validation/summary.json"
Score = tuple[str, float, float]
"""Name of a score, its value, and up to where it says that nothing is found."""

_log = logging.getLogger(__name__)


def warn_of_a_poor_teacher(teacher: Teacher[Any], score: Callable[[Mapping[str, Any]], Score | None]) -> None:
    """Warn where a teacher's own validation says that it finds nothing; a teacher without one is taken as it is.

    Args:
        teacher: the fold that is going to teach.
        score: finds the score in the content of a ``summary.json``.
    """
    path = teacher.model.path / f"fold_{teacher.fold}" / SUMMARY
    if not path.is_file():
        return
    try:
        summary = read_json(path)
    except DataError:
        return  # whoever reads scores says what is wrong with the file
    found = score(summary) if isinstance(summary, Mapping) else None
    if found is None:
        return
    name, value, nothing = found
    if value <= nothing:
        _log.warning(
            "the teacher %s (fold %s) has %s %.4f on its own validation, no better than finding nothing, so that a "
            "student can hardly learn from it; train it longer, or choose another one",
            teacher.model.name,
            teacher.fold,
            name,
            value,
        )


def number_at(content: Mapping[str, Any], *keys: str) -> float | None:
    """The finite number that stands under these keys, one within the other; None where there is none.

    >>> number_at({"mean": {"AP": {"mean": 0.5}}}, "mean", "AP", "mean")
    0.5
    >>> number_at({"mean": None}, "mean", "AP") is None
    True
    """
    value: Any = content
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    return float(value) if known else None
