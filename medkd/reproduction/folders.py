"""Names of the runs of a recipe: each has a folder of its own, also where several teachers go by one name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medkd.core.errors import DataError
from medkd.core.teachers import short_name
from medkd.reproduction.recipe import Recipe

_Folder = tuple[str, str, str | None, str | None, str]  # network, configuration, method, teacher, tag


class RunTags:
    """Gives the runs of a recipe their tags, one after another.

    Args:
        recipe: whose runs they are.
        place: the recipe's name, with which every tag begins.
        models: teacher → folder, for teachers from elsewhere.
    """

    def __init__(self, recipe: Recipe, place: str, models: Mapping[str, Path]) -> None:
        self.recipe, self.place, self.models = recipe, place, models
        self._owners: dict[_Folder, str] = {}

    def teacher(self, name: str) -> str:
        """The tag of a teacher that is trained.

        Raises:
            DataError: another run has its folder.
        """
        row = self.recipe.teachers[name]
        tag = f"{self.place}-{name}"
        folder = self._folder(str(row.network), row.settings, row.taught_by, row.method, tag)
        return self._claim(folder, f"the teacher '{name}'")

    def student(self, teacher: str | None, student: str, method: str, seed: int) -> str:
        """The tag of a student. Its teacher's name is in it where another's student would have the same folder, and for
        models from elsewhere but the first, of which all of nnU-Net's are called alike.

        Raises:
            DataError: another run has its folder all the same.
        """
        row = self.recipe.students[student]
        origin = "" if teacher is None else f"-from-{teacher}"
        owner = f"the run '{student}-{method}{origin}-seed{seed}'"
        tags = [f"{self.place}-{student}-{method}{mark}-s{seed}" for mark in self._marks(teacher)]
        folders = [self._folder(row.network, row.settings, teacher, method, tag) for tag in tags]
        free = [folder for folder in folders if self._owners.get(folder, owner) == owner]
        return self._claim((free or folders)[0], owner)

    def _marks(self, teacher: str | None) -> list[str]:
        """What may tell a student from those of other teachers; the first that does is taken."""
        if teacher is None:
            return [""]
        given = [name for name, row in self.recipe.teachers.items() if row.model is not None]
        own = f"-of-{teacher}"
        return [own] if teacher in given[1:] else ["", own]

    def _claim(self, folder: _Folder, owner: str) -> str:
        known = self._owners.setdefault(folder, owner)
        if known != owner:
            raise DataError(
                f"The recipe would keep {known} and {owner} in one folder, with the tag '{folder[-1]}'; rename a "
                "teacher, student or method."
            )
        return folder[-1]

    def _folder(
        self, network: str, settings: Mapping[str, object], teacher: str | None, method: str | None, tag: str
    ) -> _Folder:
        way: Mapping[str, object] = {} if method is None else self.recipe.methods[method].settings
        configuration = str({**self.recipe.settings, **settings, **way}.get("configuration"))
        if teacher is None or method is None:
            return network, configuration, None, None, tag
        return network, configuration, self.recipe.methods[method].method, self._short(teacher), tag

    def _short(self, teacher: str) -> str:
        """The name of a teacher in the names of its students' runs, see :func:`medkd.core.teachers.short_name`."""
        row = self.recipe.teachers[teacher]
        if row.model is not None:
            return short_name(self.models[teacher])
        how = f"{self.place}-{teacher}" if row.method is None else self.recipe.methods[row.method].method
        return f"{row.network}-{how}"
