"""Tables (CSV) that come with a data set, and case ids made from file names."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medkd.core.errors import DataError
from medkd.core.files import check_file


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file, values stripped; the byte order mark that spreadsheets write is ignored.

    Raises:
        DataError: the file is missing, unreadable or lacks one of the columns.
    """
    check_file(path)
    rows: list[dict[str, str]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            for row in csv.DictReader(stream):
                rows.append(_stripped(row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    for column in columns:
        if not rows or column not in rows[0]:
            found = ", ".join(rows[0]) if rows else "no rows"
            raise DataError(f"{path}: expected the column '{column}', found {found}.")
    return rows


def _stripped(row: Mapping[str | None, object]) -> dict[str, str]:
    """A row without blanks, and without the cells beyond the last column, which are a list."""
    cells: dict[str, str] = {}
    for column, value in row.items():
        if value is None or isinstance(value, str):
            name = (column or "").strip()
            cells[name] = (value or "").strip()
    return cells


def unique_cases(paths: Iterable[Path], folder: Path) -> dict[Path, str]:
    """A case id for each image, no two equal: its stem; its path below ``folder`` where several have the same stem;
    with ``_2``, ``_3``, … appended where that does not tell them apart either (``a b.png`` and ``a_b.png``, ``c.jpg``
    and ``c.png``), in the order of their paths.
    """
    names: dict[Path, str] = {}
    for path in sorted(paths):
        names[path] = case_name(path.name)
    count = Counter(names.values())
    for path, name in names.items():
        if count[name] > 1:
            names[path] = case_name("_".join(below(path.with_suffix(""), folder)) + ".x")
    taken = set(names.values())
    first: set[str] = set()
    for path, name in names.items():
        if name in first:
            names[path] = _free(name, taken)
            taken.add(names[path])
        first.add(name)
    return names


def _free(name: str, taken: set[str]) -> str:
    """The name with the lowest number from 2 on that nobody has."""
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def below(path: Path, folder: Path) -> tuple[str, ...]:
    """The parts of a path below a folder; of a path elsewhere all of them."""
    if path.is_relative_to(folder):
        return path.relative_to(folder).parts
    return path.parts[1:]


def case_name(name: str) -> str:
    """A case id from a file name: its stem, with anything but letters, digits, ``.``, ``_`` and ``-`` replaced by
    ``_``.
    """
    letters = []
    for letter in Path(name).stem:
        allowed = letter.isalnum() or letter in "._-"
        letters.append(letter if allowed else "_")
    return "".join(letters)
