"""Statements of a recipe that match no row of its table would leave out, or compare with, nothing; they are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from medkd.core.errors import DataError

if TYPE_CHECKING:
    from medkd.reproduction.recipe import Published, Recipe, Without

_Combination = tuple[str | None, str | None, str | None]


def check_matches(recipe: Recipe, path: Path) -> None:
    """Refuse published figures and rules that match nothing, and recipes without any score.

    Raises:
        DataError: see above.
    """
    for place, rule in enumerate(recipe.without):
        if not any(rule.covers(*combination) for combination in recipe.every_combination()):
            raise DataError(
                f"{path}: without[{place}] ({_named(rule)}) leaves out no row; a method that needs no teacher has one "
                "row per student, without 'teacher'; mend it, or leave it out."
            )
    rows: list[_Combination] = [*recipe.combinations(), *((name, None, None) for name in recipe.teachers)]
    for place, figures in enumerate(recipe.published):
        where = f"{path}: published[{place}] ({_named(figures)})"
        if not figures.scores:
            raise DataError(f"{where} has no 'scores'; write what the paper says, or leave it out.")
        if not any(figures.is_about(*row) for row in rows):
            raise DataError(
                f"{where} belongs to no row of the table; expected a row's student and method, with its teacher where "
                "the method needs one, or a teacher alone; mend it, or leave it out."
            )
    _check_scores(recipe, path)


def _named(row: Without | Published) -> str:
    """What a statement names."""
    return ", ".join(_words(row)) or "no teacher, student or method"


def _words(row: Without | Published) -> Iterator[str]:
    for key in ("teacher", "student", "method"):
        value = getattr(row, key)
        if value is not None:
            yield f"{key} '{value:.60}'"


def _check_scores(recipe: Recipe, path: Path) -> None:
    """A table needs validation cases and a validation at the end."""
    if all(fold == "all" for fold in recipe.folds):
        raise DataError(
            f"{path}: folds: 'all' has no validation cases, so that the table would be empty; name a numbered fold, "
            "too."
        )
    places = [("settings", recipe.settings)]
    places += [(f"students.{name}.settings", row.settings) for name, row in recipe.students.items()]
    places += [(f"methods.{name}.settings", row.settings) for name, row in recipe.methods.items()]
    for where, settings in places:
        if settings.get("validate") is False:
            raise DataError(f"{path}: {where}: without 'validate' a run has no score, so that its row would be empty.")
