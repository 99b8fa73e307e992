"""A recipe: the table of an experiment (data set, teachers, students, methods, folds, seeds) as one JSON file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medkd.core.errors import DataError
from medkd.core.serial import load, nearest
from medkd.reproduction.recipe_matches import check_matches
from medkd.reproduction.recipe_values import check_values
from medkd.reproduction.search_space import Search, check_search

ALONE = "none"
"""The method of a student that is trained without a teacher."""

_OWN = ("root", "seed", "tag", "resume", "overwrite", "method_parameters")  # which the runner sets itself


@dataclass(frozen=True, kw_only=True)
class RecipeData:
    """The data set of a recipe.

    Attributes:
        number: 1 to 999.
        name: as in ``DatasetNNN_Name``.
        format: converter of ``medkd_convert`` that makes it from a download, or ``phantom``.
        cases: how many cases it should have; None where that is open.
        labels: names of the label values 1, 2, ..., for a download that does not name them, as models from elsewhere
            call them; empty takes the download's.
        prepare: options of ``medkd_plan_and_preprocess``, such as ``{"like": "TEACHER"}``, the name of a teacher of
            the recipe that is a model from elsewhere.
    """

    number: int
    name: str
    format: str
    cases: int | None = None
    labels: tuple[str, ...] = ()
    prepare: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TeacherRow:
    """A teacher: a network to train, a model from elsewhere, or an assistant (a network that another one teaches).

    Attributes:
        network: registry name of a network that is trained.
        model: folder of a model from elsewhere, relative to the recipe; ``--model NAME=FOLDER`` says where it lies.
        taught_by: name of the teacher of this one, which is then an assistant (Mirzadeh et al., AAAI 2020,
            arXiv:1902.03393) or, with the same network, a born-again one (Furlanello et al., ICML 2018,
            arXiv:1805.04770).
        method: how an assistant is taught, a name of the recipe's methods.
        settings: options of training, by their names in Python.
        folds: of the recipe's that it is there for; None is all. A model from elsewhere may have a single one.
    """

    network: str | None = None
    model: str | None = None
    taught_by: str | None = None
    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    folds: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class StudentRow:
    """A student.

    Attributes:
        network: registry name.
        settings: options of training, by their names in Python.
    """

    network: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """A way to train a student.

    Attributes:
        method: registry name, or several joined by ``+``; ``none`` is the student alone.
        parameters: ``method.parameter`` → value.
        settings: options of training, by their names in Python.
        search: parameters that are searched for each teacher, student and fold, on inner folds of the fold's training
            cases.
    """

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    search: Search | None = None

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher takes part, if only to give the first weights."""
        return self.method != ALONE or self.settings.get("init") not in (None, "random")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of the published table.

    Attributes:
        scores: measure → value, as printed.
        source: where it stands: paper, table, row.
        teacher: name of a teacher of the recipe; None for a network alone.
        student: name of a student of the recipe; None for a teacher's own score.
        method: name of a method of the recipe.
    """

    scores: Mapping[str, float]
    source: str
    teacher: str | None = None
    student: str | None = None
    method: str | None = None

    def is_about(self, teacher: str | None, student: str | None, method: str | None) -> bool:
        """Whether the figures belong to a row of the table."""
        if (self.student, self.method) != (student, method):
            return False
        return self.teacher == teacher or (self.teacher is None and student is not None)


@dataclass(frozen=True, kw_only=True)
class Without:
    """A combination that the table does not have; a name that is left out stands for all.

    Attributes:
        teacher: name of a teacher.
        student: name of a student.
        method: name of a method.
    """

    teacher: str | None = None
    student: str | None = None
    method: str | None = None

    def covers(self, teacher: str | None, student: str, method: str) -> bool:
        """Whether a combination is left out."""
        pairs = ((self.teacher, teacher), (self.student, student), (self.method, method))
        return all(mine is None or mine == other for mine, other in pairs)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One table. Rows are named by their keys, which are parts of folder names.

    Attributes:
        title: what it is about.
        source: the paper and its table; empty for a recipe of one's own.
        dataset: the data set.
        protocol: name of a protocol, see ``docs/protocols.md``.
        settings: options of every training, by their names in Python.
        folds: ``0`` to ``4``, or ``all``.
        seeds: of the students; teachers have the first one.
        teachers: name → teacher.
        students: name → student.
        methods: name → way to train.
        without: combinations that are left out.
        published: what the paper says.
        seconds_per_step: of one training step, from which ``--check`` estimates; None where nobody measured it.
        hardware: of :attr:`seconds_per_step`.
    """

    title: str
    dataset: RecipeData
    students: Mapping[str, StudentRow]
    methods: Mapping[str, MethodRow]
    teachers: Mapping[str, TeacherRow] = field(default_factory=dict)
    source: str = ""
    protocol: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    folds: tuple[str, ...] = ("0",)
    seeds: tuple[int, ...] = (0,)
    without: tuple[Without, ...] = ()
    published: tuple[Published, ...] = ()
    seconds_per_step: float | None = None
    hardware: str = ""
    schema: int = 1

    def folds_of(self, teacher: str | None) -> tuple[str, ...]:
        """The folds for which a teacher, and those above it, are there; all for a student alone."""
        found = self.folds
        while teacher is not None:
            row = self.teachers[teacher]
            if row.folds is not None:
                found = tuple(fold for fold in found if fold in row.folds)
            teacher = row.taught_by
        return found

    def combinations(self) -> Iterator[tuple[str | None, str, str]]:
        """Teacher (None for a student alone), student and method of every row of the table."""
        for combination in self.every_combination():
            if not any(rule.covers(*combination) for rule in self.without):
                yield combination

    def every_combination(self) -> Iterator[tuple[str | None, str, str]]:
        """As :meth:`combinations`, with those that :attr:`without` leaves out."""
        for student in self.students:
            for method, row in self.methods.items():
                teachers = list(self.teachers) if row.needs_teacher else [None]
                for teacher in teachers:
                    yield teacher, student, method


def load_recipe(path: Path) -> Recipe:
    """Read a recipe and check that its parts fit together.

    Args:
        path: of the JSON file.

    Raises:
        DataError: a key is unknown or missing, a name means nothing, or a row is impossible.
    """
    recipe = load(Recipe, path, once=True)
    _check_file(path)
    _check_names(recipe, path)
    check_values(recipe, path)
    for name, teacher in recipe.teachers.items():
        _check_teacher(recipe, name, teacher, f"{path}: teachers.{name}")
    for place, rule in enumerate(recipe.without):
        _check_mentions(recipe, rule, f"{path}: without[{place}]")
    for place, row in enumerate(recipe.published):
        _check_mentions(recipe, row, f"{path}: published[{place}]")
        for measure in row.scores:
            if not measure.isprintable():
                raise DataError(f"{path}: published[{place}].scores: {measure!r:.60} cannot be printed; rename it.")
    _check_like(recipe, path)
    _check_searches(recipe, path)
    if any(row.needs_teacher for row in recipe.methods.values()) and not recipe.teachers:
        raise DataError(f"{path}: methods need a teacher, but 'teachers' is empty; name one.")
    if not list(recipe.combinations()):
        raise DataError(f"{path}: no row is left; check 'students', 'methods' and 'without'.")
    check_matches(recipe, path)
    return recipe


def _check_file(path: Path) -> None:
    """The file's name becomes a part of the runs' names, and so of options of commands."""
    if not path.stem.isprintable() or path.stem != path.stem.strip() or path.stem[:1] in ("-", "."):
        raise DataError(
            f"{path}: the name of a recipe becomes a part of its runs' names, and cannot begin with '-', '.' or a "
            "space; rename the file."
        )


def _check_names(recipe: Recipe, path: Path) -> None:
    """Names are parts of folder names, and settings leave the runner's own alone."""
    tables: dict[str, Mapping[str, Any]] = {
        "teachers": recipe.teachers,
        "students": recipe.students,
        "methods": recipe.methods,
    }
    _check_settings(recipe.settings, f"{path}: settings")
    for table, rows in tables.items():
        for name, row in rows.items():
            if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
                raise DataError(
                    f"{path}: {table}: names are letters, digits, '_' and '-', found '{name:.60}'; rename the row."
                )
            _check_settings(row.settings, f"{path}: {table}.{name}.settings")


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
    for name in settings:
        if name in _OWN:
            raise DataError(f"{where}: '{name}' is set by medkd_reproduce for every run; leave it out.")


def _check_teacher(recipe: Recipe, name: str, teacher: TeacherRow, where: str) -> None:
    if (teacher.network is None) == (teacher.model is None):
        found = "neither" if teacher.network is None else "both"
        raise DataError(f"{where}: expected either 'network' or 'model', found {found}.")
    if teacher.model is not None and (teacher.taught_by or teacher.method or teacher.settings):
        raise DataError(
            f"{where}: a 'model' from elsewhere is not trained; leave out 'taught_by', 'method' and 'settings'."
        )
    if (teacher.taught_by is None) != (teacher.method is None):
        raise DataError(f"{where}: an assistant needs both 'taught_by' and 'method'; give both, or neither.")
    _check_folds(recipe, teacher, where)
    if teacher.method is not None:
        _check_known(teacher.method, recipe.methods, "method", where)
        _check_chain(recipe, name, where)
        _check_assistant(recipe.methods[teacher.method], teacher.method, where)


def _check_assistant(row: MethodRow, method: str, where: str) -> None:
    """An assistant learns from the teacher above it, with parameters that are known."""
    if not row.needs_teacher:
        raise DataError(
            f"{where}: with the method '{method}' it would learn nothing of the teacher above it; name another one, or "
            "leave out 'taught_by' and 'method'."
        )
    if row.search is not None:
        raise DataError(
            f"{where}: the parameters of '{method}' are searched for students, and an assistant would get their "
            "defaults; name a method without 'search'."
        )


def _check_folds(recipe: Recipe, teacher: TeacherRow, where: str) -> None:
    if teacher.folds is not None and not teacher.folds:
        raise DataError(f"{where}.folds: expected folds of the recipe, found none; leave it out for all of them.")
    for fold in teacher.folds or ():
        if fold not in recipe.folds:
            raise DataError(f"{where}.folds: '{fold:.60}' is none of the recipe's folds ({', '.join(recipe.folds)}).")


def _check_chain(recipe: Recipe, name: str, where: str) -> None:
    """Teachers that teach teachers begin somewhere."""
    chain = [name]
    above = recipe.teachers[name].taught_by
    while above is not None:
        _check_known(above, recipe.teachers, "teacher", where)
        known = above in chain
        chain.append(above)
        if known:
            raise DataError(f"{where}: teachers teach each other in a circle ({' ← '.join(chain)}); break it.")
        above = recipe.teachers[above].taught_by


def _check_mentions(recipe: Recipe, row: Without | Published, where: str) -> None:
    """Names that mean nothing would leave out, or compare with, nothing."""
    tables: tuple[tuple[str, str | None, Mapping[str, Any]], ...] = (
        ("teacher", row.teacher, recipe.teachers),
        ("student", row.student, recipe.students),
        ("method", row.method, recipe.methods),
    )
    for what, name, known in tables:
        if name is not None:
            _check_known(name, known, what, where)


def _check_like(recipe: Recipe, path: Path) -> None:
    like = recipe.dataset.prepare.get("like")
    if like is None:
        return
    where = f"{path}: dataset.prepare.like"
    _check_known(str(like), recipe.teachers, "teacher", where)
    if recipe.teachers[str(like)].model is None:
        raise DataError(f"{where}: '{like}' is trained here and has no plan of its own; name a teacher with 'model'.")


def _check_search(row: MethodRow, search: Search, where: str) -> None:
    if row.method == ALONE:
        raise DataError(f"{where}: the method 'none' has no parameters; leave 'search' out.")
    check_search(search, where)
    for parameter in search.parameters:
        if parameter in row.parameters:
            raise DataError(f"{where}: {parameter} is set in 'parameters', too; leave it out of one of them.")


def _check_searches(recipe: Recipe, path: Path) -> None:
    for name, method_row in recipe.methods.items():
        if method_row.search is not None:
            _check_search(method_row, method_row.search, f"{path}: methods.{name}.search")
    for teacher, _, method in recipe.combinations():
        row = recipe.methods[method]
        if row.search is None or teacher is None:
            continue
        above = recipe.teachers[teacher]
        if above.network is None or above.taught_by is not None:
            kind = "is a model from elsewhere, which" if above.network is None else "has a teacher of its own, and"
            raise DataError(
                f"{path}: methods.{method}.search: the teacher '{teacher}' {kind} has seen the cases of the inner "
                "folds; search with a 'network' that is trained alone, and leave this pair out with 'without'."
            )


def _check_known(name: str, known: Mapping[str, Any], what: str, where: str) -> None:
    if name not in known:
        raise DataError(
            f"{where}: the recipe has no {what} '{name:.60}'.{nearest(name, known)} There are: {', '.join(known)}."
        )
