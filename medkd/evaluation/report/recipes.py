"""The tables of recipes on a report's data set, beside the published figures, as ``medkd_reproduce`` left them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from medkd.core.errors import DataError
from medkd.core.files import read_json
from medkd.evaluation.report.html import section, table, without_folders

_TABLE, _ORIGIN = "table.md", "recipe.json"
_CELLS = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class RecipeTable:
    """A recipe's table as text.

    Attributes:
        title: of the recipe.
        head: titles of the columns.
        rows: cells, as many as titles.
        notes: what stands below.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def read_tables(folder: Path, dataset: str) -> tuple[RecipeTable, ...]:
    """The tables of a data set's recipes, by the recipes' names.

    Args:
        folder: ``<root>/reproductions``; need not exist.
        dataset: full name.

    Raises:
        DataError: a table is damaged.
    """
    found = []
    for origin in sorted(folder.glob(f"*/{_ORIGIN}")):
        path = origin.with_name(_TABLE)
        if path.exists() and read_json(origin).get("dataset") == dataset:
            found.append(parse(path))
    return tuple(found)


def parse(path: Path) -> RecipeTable:
    """Read the Markdown that ``medkd_reproduce`` wrote.

    Raises:
        DataError: it is another text.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [_cells(line) for line in lines if line.startswith("|")]
    if not lines or not lines[0].startswith("# ") or len(rows) < 2 or len({len(row) for row in rows}) != 1:
        raise DataError(
            f"{path}: expected the table of a recipe, found another text; medkd_reproduce writes it again when it is "
            "given the recipe."
        )
    notes = tuple(line.removeprefix("- ") for line in lines if line.startswith("- "))
    return RecipeTable(lines[0].removeprefix("# "), rows[0], tuple(rows[2:]), notes)


def recipe_section(tables: Sequence[RecipeTable]) -> str:
    """The part of a page with these tables; nothing where there is none."""
    parts = []
    for found in tables:
        rows = [[_shown(cell) for cell in row] for row in found.rows]
        notes = "".join(f"<li>{_shown(note)}</li>" for note in found.notes)
        parts.append(f"<h3>{_shown(found.title)}</h3>")
        parts.append(table([escape(name) for name in found.head], rows))
        parts.append(f"<ul>{notes}</ul>" if notes else "")
    return section("Tables of recipes", "As medkd_reproduce left them, beside the published figures.", *parts)


def _cells(line: str) -> tuple[str, ...]:
    inner = line.strip()[1:-1]
    return tuple(cell.strip().replace(r"\|", "|") for cell in _CELLS.split(inner))


def _shown(text: str) -> str:
    return escape(without_folders(text))
