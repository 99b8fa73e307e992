"""Reading of result files whose values are checked as they are taken, so that a damaged file is one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite, nan
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from medkd.core.errors import DataError
from medkd.core.files import read_json
from medkd.evaluation.statistics import Interval

_LARGEST = 2**62


class Entry:
    """An object of a JSON file.

    Args:
        value: what the file holds there.
        where: file and keys that lead there, for error texts.
        remedy: what to do about a damaged file.
    """

    def __init__(self, value: Any, where: str, remedy: str = "evaluate again") -> None:
        self.where = where
        self.remedy = remedy
        if not isinstance(value, Mapping):
            self.fail(where, "an object", value)
        self.values: Mapping[str, Any] = value

    @classmethod
    def read(cls, path: Path, remedy: str = "evaluate again") -> Entry:
        """The object that a file holds.

        Raises:
            DataError: the file is missing, unreadable, not JSON, or holds something else.
        """
        return cls(read_json(path), str(path), remedy)

    def fail(self, where: str, expected: str, found: Any) -> NoReturn:
        """Say what is wrong.

        Raises:
            DataError: always.
        """
        shown = "nothing" if found is None else type(found).__name__
        if isinstance(found, (str, int, float)):
            shown = f"{found!r:.60}"
        raise DataError(f"{where}: expected {expected}, found {shown}; {self.remedy}.")

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def object(self, key: str) -> Entry:
        """The object under a key."""
        return Entry(self.values.get(key), f"{self.where}: {key:.80}", self.remedy)

    def objects(self, key: str) -> Iterator[tuple[str, Entry]]:
        """The named objects in the object under a key."""
        inner = self.object(key)
        for name in inner.values:
            yield name, inner.object(name)

    def listed(self, key: str) -> list[Any]:
        """The list under a key."""
        value = self.values.get(key)
        if not isinstance(value, list):
            self.fail(f"{self.where}: {key}", "a list", value)
        return value

    def listed_objects(self, key: str) -> list[Entry]:
        """The objects in the list under a key."""
        found = []
        for place, value in enumerate(self.listed(key)):
            found.append(Entry(value, f"{self.where}: {key}[{place}]", self.remedy))
        return found

    def texts(self, key: str) -> tuple[str, ...]:
        """The texts in the list under a key."""
        for value in self.listed(key):
            if not isinstance(value, str):
                self.fail(f"{self.where}: {key}", "a list of texts", value)
        return tuple(self.listed(key))

    def text(self, key: str) -> str:
        """The text under a key."""
        value = self.values.get(key)
        if not isinstance(value, str):
            self.fail(f"{self.where}: {key}", "a text", value)
        return value

    def choice(self, key: str, *known: str) -> str:
        """One of some texts under a key."""
        value = self.values.get(key)
        if value not in known:
            self.fail(f"{self.where}: {key}", " or ".join(known), value)
        return str(value)

    def number(self, key: str) -> float | None:
        """The finite number under a key; None where it is null, missing or NaN (as nnU-Net writes it)."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > _LARGEST:
            self.fail(f"{self.where}: {key}", "a number or null", value)
        return float(value) if isfinite(value) else None

    def count(self, key: str) -> int:
        """The number of at least 0 under a key; a fraction is none."""
        value = self.number(key)
        if value is None or value < 0 or value != int(value):
            self.fail(f"{self.where}: {key}", "a whole number of at least 0", self.values.get(key))
        return int(value)

    def interval(self, key: str) -> Interval:
        """What :func:`medkd.evaluation.statistics.interval_json` wrote under a key."""
        entry = self.object(key)
        mean, low, high = (entry.number(name) for name in ("mean", "low", "high"))
        return Interval(_or_nan(mean), _or_nan(low), _or_nan(high), entry.count("n"))

    def numbers(self, key: str, columns: int | None = None) -> np.ndarray:
        """The list of numbers ``(n,)`` under a key, or of lists of so many numbers ``(n, columns)``; null is NaN."""
        value = self.listed(key)
        shape: tuple[int, ...] = () if columns is None else (columns,)
        expected = f"a list of lists of {columns} numbers"
        if columns is None:
            expected = "a list of numbers"
            value = [nan if number is None else number for number in value]
        if not value:
            return np.zeros((0, *shape))
        try:
            array = np.array(value)
        except ValueError:  # lists of different lengths
            self.fail(f"{self.where}: {key}", expected, value)
        if array.dtype.kind not in "iuf" or array.shape[1:] != shape:
            self.fail(f"{self.where}: {key}", expected, value)
        return array.astype(np.float64)

    def check_schema(self, known: int) -> None:
        """A file without a schema is one of the first.

        Raises:
            DataError: it was written in another form than this medkd reads.
        """
        found = self.values.get("schema", known)
        if isinstance(found, bool) or found != known:
            raise DataError(
                f"{self.where}: has schema {found!r:.60}, this medkd reads schema {known}; {self.remedy} with this "
                "version."
            )


def _or_nan(value: float | None) -> float:
    return nan if value is None else value
