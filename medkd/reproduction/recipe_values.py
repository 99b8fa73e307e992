"""The numbers and lists of a recipe: data set, folds, seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkd.core.errors import DataError
from medkd.core.paths import new_dataset_name

if TYPE_CHECKING:
    from medkd.reproduction.recipe import Recipe, RecipeData

FOLDS = ("0", "1", "2", "3", "4", "all")
PHANTOM = "phantom"
"""The format of a data set that is made from formulas."""


def check_values(recipe: Recipe, path: Path) -> None:
    """Numbers, names and lists that no command could take.

    Raises:
        DataError: naming the file and the key.
    """
    data = recipe.dataset
    if not 1 <= data.number <= 999:
        raise DataError(f"{path}: dataset.number: expected 1 to 999, found {data.number}.")
    try:
        new_dataset_name(data.number, data.name)
    except DataError as error:
        raise DataError(f"{path}: dataset.name: {error}") from error
    if data.cases is not None and data.cases < 1:
        raise DataError(
            f"{path}: dataset.cases: expected at least 1, found {data.cases}; leave it out where it is open."
        )
    if recipe.seconds_per_step is not None and recipe.seconds_per_step <= 0:
        raise DataError(f"{path}: seconds_per_step: expected a number above 0, found {recipe.seconds_per_step:g}.")
    _check_labels(recipe.dataset, f"{path}: dataset.labels")
    for fold in recipe.folds:
        if fold not in FOLDS:
            raise DataError(f"{path}: folds: expected some of {', '.join(FOLDS)}, found '{fold:.60}'.")
    _check_different(recipe.folds, f"{path}: folds")
    _check_different(recipe.seeds, f"{path}: seeds")
    if min(recipe.seeds) < 0:
        raise DataError(f"{path}: seeds: expected numbers of at least 0, found {min(recipe.seeds)}.")


def _check_labels(data: RecipeData, where: str) -> None:
    if data.labels and data.format == PHANTOM:
        raise DataError(f"{where}: a phantom has names of its own; leave it out.")
    for label in data.labels:
        if not label.strip() or "," in label:
            raise DataError(f"{where}: expected names without commas, found '{label:.60}'; rename it.")
    if data.labels:
        _check_different(data.labels, where)


def _check_different(values: tuple[Any, ...], where: str) -> None:
    """See that a list is not empty and names nothing twice."""
    if not values or len(set(values)) != len(values):
        raise DataError(f"{where}: expected one or more different values, found {list(values)}.")
