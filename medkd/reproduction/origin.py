"""Of which recipe a folder of records is, since recipes of one file name would share one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medkd.core.errors import DataError
from medkd.core.serial import load, save
from medkd.reproduction.recipe import Recipe

_FILE = "recipe.json"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """``recipe.json`` beside the records; earlier versions wrote none, and their folders are taken over.

    Attributes:
        path: of the recipe.
        title: of it.
        dataset: full name.
    """

    path: str
    title: str
    dataset: str
    schema: int = 1

    @classmethod
    def of(cls, path: Path, recipe: Recipe) -> Origin:
        """Of a recipe that was read."""
        dataset = f"Dataset{recipe.dataset.number:03d}_{recipe.dataset.name}"
        return cls(path=str(path.absolute()), title=recipe.title, dataset=dataset)

    def keep(self, folder: Path) -> None:
        """Say in a folder whose it is."""
        save(folder / _FILE, self)

    def refuse_other(self, folder: Path) -> None:
        """Refuse the folder of another recipe. One that was edited or copied is the same, as long as it is of the same
        data set, and has its place or its title still.

        Raises:
            DataError: the folder is another recipe's, or what says whose it is is damaged.
        """
        if not (folder / _FILE).exists():
            return
        held = load(Origin, folder / _FILE)
        if held.dataset == self.dataset and (held.path == self.path or held.title == self.title):
            return
        raise DataError(
            f"{folder} holds the runs of another recipe, {held.path} ('{held.title:.100}', {held.dataset}), expected "
            f"those of {self.path} ('{self.title:.100}', {self.dataset}); rename one of the two files or "
            f"give another --root, or, if it is the same recipe after all, remove {folder / _FILE}."
        )
